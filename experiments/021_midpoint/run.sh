#!/bin/sh
# How a block is integrated: the demo's denoiser with three seeds, each sampled by Euler's method and by midpoints. It needs what
# `make demo` makes. Stops and goes on like its parts. Two cores, about two hours.
#   SEEDS="0 1 2"   SOLVERS="euler midpoint"   OUT=where things go
set -eu
OUT=${OUT:-runs/midpoint} VAE=runs/demo/vae/export DATA=data/demo-latents

for SEED in ${SEEDS:-0 1 2}; do
  RUN="$OUT/seed_$SEED"
  if [ "$SEED" = 0 ]; then RUN=runs/demo/denoiser; fi # the demo's own
  af train experiment=denoiser_demo data.root=$DATA run="$RUN" trainer.max_steps=1600 seed="$SEED" evaluation=none
  for SOLVER in ${SOLVERS:-euler midpoint}; do
    af evaluate --autoencoder $VAE --denoiser "$RUN/export" --data $DATA/test --out "$OUT/${SOLVER}_$SEED" evaluation.videos=2 \
      evaluation.guidance_audio=0.7 evaluation.guidance_user=0 evaluation.guidance_joint=1 evaluation.solver="$SOLVER"
  done
done
