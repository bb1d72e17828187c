#!/bin/sh
# A motion VAE of real people at 128 px, and what of a driving face arrives in its images. Stops and continues like its parts.
#   MANIFEST=people.csv   OUT=where things go   STEPS="3000 15000 16000"   # of the three trainings
set -eu
OUT=${OUT:-runs/real_people}
read -r ENCODER SMALL LARGE <<STEPS_END
${STEPS:-3000 15000 16000}
STEPS_END
af ingest --manifest "$MANIFEST" --out "$OUT/data" --size 128 --detector mediapipe --workers 2
af train experiment=vae_people_encoder data.root="$OUT/data" run="$OUT/encoder" trainer.max_steps="$ENCODER" "$@"
af train experiment=vae_people64 data.root="$OUT/data" run="$OUT/vae64" encoder="$OUT/encoder/export" \
  trainer.max_steps="$SMALL" "$@"
af train experiment=vae_people data.root="$OUT/data" run="$OUT/vae128" encoder="$OUT/encoder/export" \
  start="$OUT/vae64/export" trainer.max_steps="$LARGE" "$@"
af probe --real --autoencoder "$OUT/vae128/export" --data "$OUT/data/test" --out "$OUT/probe"
