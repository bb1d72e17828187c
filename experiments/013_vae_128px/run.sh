#!/bin/sh
# A motion VAE on drawn faces of 128 px, started at 64 px, then what its latents are worth. Stops and continues like its parts.
set -eu
OUT=${OUT:-runs/vae_128px}
for SIZE in 64 128; do
  af synth --out "$OUT/data$SIZE" --train 320 --val 4 --test 32 --seconds 6 --size $SIZE
done
af train experiment=vae_synth64 data.root="$OUT/data64" run="$OUT/vae64"
af train experiment=vae_synth128 data.root="$OUT/data128" run="$OUT/vae128" module.start="$OUT/vae64/export"
af train experiment=vae_synth128 data.root="$OUT/data128" run="$OUT/vae128_again" module.start="$OUT/vae128/export" \
  trainer.max_steps=2600
af probe --autoencoder "$OUT/vae128_again/export" --data "$OUT/data128/test" --out "$OUT/probe"
