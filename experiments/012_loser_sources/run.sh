#!/bin/sh
# Losers from several sources, a short preference stage on each, and on those made on line. Stopped, the same command goes on.
set -eu
LATENTS=${LATENTS:-data/demo-latents} START=${START:-runs/demo/denoiser/export} TALKING=${TALKING:-}
ITSELF=${ITSELF:-drop_user weak shuffled} # sources that are the denoiser itself
af train experiment=denoiser_demo run=runs/talking data.root="$LATENTS" evaluation=none trainer.max_steps=800 \
  module.dropout.user=1.0 $TALKING
made() { af losers losers.solver=euler losers.schedule=uniform --data "$LATENTS" --denoiser "$START" --out "data/losers/$@"; }
for SOURCE in $ITSELF; do
  made $SOURCE losers=$SOURCE
done
made drop_user_unguided losers.audio=1
made talking losers=talking losers.model=runs/talking/export
af train sweep=losers evaluation.solver=euler evaluation.schedule=uniform start="$START" data.root="$LATENTS" module.online=null 'data.losers=data/losers/${loser}' \
  -m seed=0,1 loser=drop_user,drop_user_unguided,weak,shuffled,talking "$@"
af train sweep=losers evaluation.solver=euler evaluation.schedule=uniform module.online.source.solver=euler module.online.source.schedule=uniform start="$START" data.root="$LATENTS" -m seed=0,1 "$@" loser=online
for SEED in 0 1; do
  OUT=runs/losers/none-$SEED
  [ -f "$OUT/metrics.json" ] || af evaluate evaluation.solver=euler evaluation.schedule=uniform --denoiser "$START" --data "$LATENTS/test" --linear-probe "$LATENTS/train" \
    --out "$OUT" evaluation.guidance_user=2 evaluation.seed=$SEED
done
af report runs/losers
