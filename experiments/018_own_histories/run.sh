#!/bin/sh
# Does a denoiser that has trained on its own histories stay nearer to true motion? Beside one that trained as long without.
# It needs the shards, latents and models of `make demo`. Stops and goes on like its parts.
#   SEEDS="0 1"   STEPS=800 OUT=where things go
set -eu
DEMO=${DEMO:-runs/demo} LATENTS=${LATENTS:-data/demo-latents} OUT=${OUT:-runs/own_histories}
af teacher --data "$LATENTS" --denoiser "$DEMO/denoiser/export" --guidance-user 2 --out data/demo-teacher-own
for SEED in ${SEEDS:-0 1}; do
  for KIND in control own; do
    RUN="$OUT/$KIND,seed=$SEED"
    HISTORIES=
    [ "$KIND" = control ] || HISTORIES="+histories@module.histories=own data.teacher=data/demo-teacher-own"
    # shellcheck disable=SC2086
    af train experiment=denoiser_demo start="$DEMO/denoiser/export" data.root="$LATENTS" run="$RUN" seed="$SEED" \
      optimizer.lr=5e-4 trainer.max_steps="${STEPS:-800}" evaluation=none callbacks.previews=null $HISTORIES "$@"
    af evaluate --autoencoder "$DEMO/vae/export" --denoiser "$RUN/export" --data "$LATENTS/test" --out "$RUN/evaluation" \
      evaluation.guidance_user=2 evaluation.videos=0 evaluation.drift=true
  done
done
