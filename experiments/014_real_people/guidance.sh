#!/bin/sh
# What guidance by the readings of faces is worth, at 64 px and few steps: the encoder guided first, or nothing but pixels.
# It needs the shards of run.sh.   MANIFEST=people.csv   OUT=where things go   STEPS="1200 400"   # of the encoder, of the rest
set -eu
OUT=${OUT:-runs/real_people}
read -r ENCODER SMALL <<STEPS_END
${STEPS:-1200 400}
STEPS_END
af ingest --manifest "$MANIFEST" --out "$OUT/data64" --size 64 --detector mediapipe --workers 2
af train experiment=vae_people_encoder data.root="$OUT/data" run="$OUT/guidance/encoder" trainer.max_steps="$ENCODER" "$@"
af train experiment=vae_people64 data.root="$OUT/data" run="$OUT/guidance/guided" encoder="$OUT/guidance/encoder/export" \
  trainer.max_steps="$SMALL" trainer.val_check_interval="$SMALL" "$@"
af train experiment=vae_people64 data.root="$OUT/data" run="$OUT/guidance/none" encoder=null start=null loss.guide=0 \
  loss.distance=null loss.perceptual=0 module.copy_first=true trainer.max_steps="$SMALL" trainer.val_check_interval="$SMALL" "$@"
for RUN in guided none; do
  af probe --real --autoencoder "$OUT/guidance/$RUN/export" --data "$OUT/data64/test" --out "$OUT/guidance/${RUN}_probe"
done
