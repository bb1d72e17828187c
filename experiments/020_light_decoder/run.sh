#!/bin/sh
# A light decoder, and the full one that it replaces, judged on held-out people: the package's motion VAE of 64 px (minutes), then
# one of 256 px, which is trained by doubling (some two and a half hours of one core). Needs the shards of `make demo`. Stops and goes on
# like its parts.
#   SIZES="64 256"   OUT=where things go
set -eu
OUT=${OUT:-runs/light_decoder} OWN=af/serve/weights/autoencoder

train() { # EXPERIMENT DATA RUN STEPS [KEY=VALUE ...]
  EXPERIMENT=$1 DATA=$2 RUN=$3 STEPS=$4
  shift 4
  af train experiment="$EXPERIMENT" data.root="$DATA" run="$OUT/$RUN" trainer.max_steps="$STEPS" trainer.val_check_interval=100 \
    evaluation=none "$@"
}

judged() { # FULL LIGHT DATA SIZE
  af probe --autoencoder "$1" --data "$3/test" --conversations 16 --out "$OUT/full_$4"
  af probe --autoencoder "$2" --data "$3/test" --conversations 16 --out "$OUT/light_$4"
}

for SIZE in ${SIZES:-64 256}; do
  if [ "$SIZE" = 64 ]; then
    train vae_light data/demo light64 600 start=$OWN light=1024
    judged $OWN "$OUT/light64/export" data/demo 64
    continue
  fi
  for PIXELS in 64 128 256; do
    af synth --out "$OUT/data$PIXELS" --train 240 --val 4 --test 16 --seconds 6 --size $PIXELS
  done
  train vae_synth64 "$OUT/data64" vae64 1100 model.channel_base=4096
  train vae_synth128 "$OUT/data128" vae128 260 start="$OUT/vae64/export" model.channel_base=4096
  train vae_synth128 "$OUT/data256" vae256 200 start="$OUT/vae128/export" model.image_size=256 model.channel_base=4096
  train vae_light "$OUT/data256" light256 1200 start="$OUT/vae256/export" light=2048
  judged "$OUT/vae256/export" "$OUT/light256/export" "$OUT/data256" 256
done
