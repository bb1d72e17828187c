#!/bin/sh
# Where a block's evaluations should lie. It needs all that experiments/024_an_hour/run.sh makes. Stops and goes on like its parts.
#   PARTS="latents videos student"   SEEDS="0 1 2"   HOUR=where experiment 024 is   OUT=where things go
set -eu
HOUR=${HOUR:-runs/hour} OUT=${OUT:-runs/fine} L=data/demo-latents-hour T=data/demo-teacher-fine-end
GUIDED="evaluation.guidance_audio=0.7 evaluation.guidance_user=0 evaluation.guidance_joint=1"

latents() { # faces are a linear function of the latents: no videos, a minute each
  for HOW in uniform:8 uniform:32 fine_end:8; do
    af evaluate --denoiser "$HOUR/denoiser_0/export" --data $L/test --linear-probe $L/train --out "$OUT/latents/${HOW%:*}_${HOW#*:}" \
      evaluation.guidance_audio=0 evaluation.guidance_user=0 evaluation.guidance_joint=1 \
      evaluation.schedule="${HOW%:*}" evaluation.steps="${HOW#*:}"
  done
}

judged() { # DENOISER OUT [KEY=VALUE ...]
  MOTION=$1 TO=$2
  shift 2
  af evaluate --autoencoder "$HOUR/vae/export" --denoiser "$MOTION" --data "$L/test" --out "$TO" evaluation.videos=2 "$@"
}

videos() {
  for SEED in ${SEEDS:-0 1 2}; do
    # shellcheck disable=SC2086
    judged "$HOUR/denoiser_$SEED/export" "$OUT/guided_$SEED" $GUIDED evaluation.dead_band=0.05
  done
}

student() {
  af teacher --data $L --denoiser "$HOUR/denoiser_0/export" --guidance-audio 0.7 --guidance-user 0 --guidance-joint 1 --out $T
  af train experiment=distill_demo start="$HOUR/denoiser_0/export" data.root=$L data.teacher=$T run="$OUT/student" \
    evaluation=none callbacks.previews=null trainer.max_steps=3600
  judged "$OUT/student/export" "$OUT/student_band" evaluation.unguided=true evaluation.steps=1 evaluation.solver=euler \
    evaluation.dead_band=0.05
  python -m af.serve.ship --autoencoder "$HOUR/vae" --denoiser "$HOUR/denoiser_0" --student "$OUT/student" --out "$OUT/weights"
}

for PART in ${PARTS:-latents videos student}; do
  "$PART"
done
