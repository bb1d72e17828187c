#!/bin/sh
# A motion VAE on drawn faces of 256 px, by doubling, a light decoder for it, and both judged on held-out people. Stops and goes on
# like its parts. One core, about an hour.
set -eu
OUT=${OUT:-runs/light_decoder}
for SIZE in 64 128 256; do
  af synth --out "$OUT/data$SIZE" --train 240 --val 4 --test 16 --seconds 6 --size $SIZE
done
train() { # EXPERIMENT SIZE RUN STEPS [KEY=VALUE ...]
  EXPERIMENT=$1 SIZE=$2 RUN=$3 STEPS=$4
  shift 4
  af train experiment="$EXPERIMENT" data.root="$OUT/data$SIZE" run="$OUT/$RUN" trainer.max_steps="$STEPS" \
    trainer.val_check_interval=100 evaluation=none "$@"
}
train vae_synth64 64 vae64 1100 model.channel_base=4096
train vae_synth128 128 vae128 260 start="$OUT/vae64/export" model.channel_base=4096
train vae_synth128 256 vae256 200 start="$OUT/vae128/export" model.image_size=256 model.channel_base=4096
train vae_light 256 light 300 start="$OUT/vae256/export" light=2048
for MODEL in vae256 light; do
  af probe --autoencoder "$OUT/$MODEL/export" --data "$OUT/data256/test" --out "$OUT/probe_$MODEL"
done
