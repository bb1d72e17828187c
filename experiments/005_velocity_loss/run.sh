#!/bin/sh
# Three losses x seeds, rolled out at three guidance scales. Stopped, the same command goes on with what is not done.
set -eu
LATENTS=${LATENTS:-data/demo-latents}
af train experiment=denoiser_demo name=velocity_loss scheme=forcing module.histories=null data.root="$LATENTS" evaluation=none trainer.val_check_interval=1600 \
  -m seed=0,1,2 module.loss.kind=l1,l2,huber "$@"
for RUN in runs/velocity_loss/*,seed=*; do
  for W in 1 2 3; do
    OUT="$RUN/evaluation/w_u=$W"
    [ -f "$OUT/metrics.json" ] || af evaluate evaluation.solver=euler evaluation.schedule=uniform --denoiser "$RUN/export" --data "$LATENTS/test" --linear-probe "$LATENTS/train" \
      --out "$OUT" evaluation.guidance_user=$W
  done
done
af report runs/velocity_loss
