#!/bin/sh
# A teacher's roll-outs, students of one and two steps, everybody's numbers. Stopped, the same command goes on.
set -eu
LATENTS=${LATENTS:-data/demo-latents} START=${START:-runs/demo/denoiser/export}
for STEPS in 8 2 1; do
  OUT=runs/distillation/teacher-$STEPS
  [ -f "$OUT/metrics.json" ] || af evaluate evaluation.solver=euler evaluation.schedule=uniform --denoiser "$START" --data "$LATENTS/test" --linear-probe "$LATENTS/train" \
    --out "$OUT" evaluation.guidance_user=2 evaluation.steps=$STEPS
done
af teacher --solver euler --schedule uniform --data "$LATENTS" --denoiser "$START" --guidance-user 2 --out runs/distillation/pairs
af train experiment=distill_demo scheme=forcing module.flow_times.clean_probability=0.5 module.histories=null name=distillation start="$START" data.root="$LATENTS" data.teacher=runs/distillation/pairs \
  evaluation=linear_probe evaluation.unguided=true 'evaluation.steps=${steps}' -m seed=0,1,2 steps=2,1 "$@"
af report runs/distillation
