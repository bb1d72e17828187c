#!/bin/sh
# How a block is integrated. `package`: the avatar of the package, guided and unguided, and a student that learns from its midpoints; it
# needs the shards of `make demo`. `seeds`: the demo's denoiser with other seeds, each sampled by Euler's method and by midpoints;
# it needs all that `make demo` makes. Stops and goes on like its parts. Two cores, about an hour each.
#   PARTS="package seeds"   SEEDS="0 1 2"   OUT=where things go
set -eu
OUT=${OUT:-runs/midpoint}
GUIDED="evaluation.guidance_audio=0.7 evaluation.guidance_user=0 evaluation.guidance_joint=1"

judged() { # AUTOENCODER DENOISER DATA OUT [KEY=VALUE ...]
  IMAGES=$1 MOTION=$2 DATA=$3 TO=$4
  shift 4
  af evaluate --autoencoder "$IMAGES" --denoiser "$MOTION" --data "$DATA/test" --out "$TO" evaluation.videos=2 \
    evaluation.schedule=uniform "$@"
}

package() {
  OWN=af/serve/weights L=data/demo-latents-package T=data/demo-teacher-package RUN=runs/teacher_forcing/student
  af encode --data data/demo --autoencoder $OWN/autoencoder --out $L --precision auto
  judged $OWN/autoencoder $OWN/denoiser $L "$OUT/unguided_midpoint" evaluation.unguided=true evaluation.dead_band=0
  # shellcheck disable=SC2086
  judged $OWN/autoencoder $OWN/denoiser $L "$OUT/guided_midpoint" $GUIDED evaluation.dead_band=0.03
  # shellcheck disable=SC2086
  judged $OWN/autoencoder $OWN/denoiser $L "$OUT/less_calm_midpoint" $GUIDED evaluation.dead_band=0.01 evaluation.drift=true
  # shellcheck disable=SC2086
  judged $OWN/autoencoder $OWN/denoiser $L "$OUT/guided_midpoint_noise_1" $GUIDED evaluation.dead_band=0.03 evaluation.seed=1
  af teacher --schedule uniform --data $L --denoiser $OWN/denoiser --guidance-audio 0.7 --guidance-user 0 --guidance-joint 1 --out $T
  af train experiment=distill_demo start=$OWN/denoiser data.root=$L data.teacher=$T run=$RUN evaluation=none callbacks.previews=null
  python -m af.serve.ship --autoencoder $OWN/autoencoder --denoiser $OWN/denoiser --student $RUN --out "$OUT/weights"
  judged $OWN/autoencoder "$OUT/weights/student" $L "$OUT/student_midpoint" evaluation.unguided=true evaluation.steps=1 \
    evaluation.drift=true
  judged $OWN/autoencoder "$OUT/weights/student" $L "$OUT/student_midpoint_noise_1" evaluation.unguided=true evaluation.steps=1 \
    evaluation.seed=1
}

seeds() {
  for SEED in ${SEEDS:-0 1 2}; do
    RUN="$OUT/seed_$SEED" L=data/demo-latents
    if [ "$SEED" = 0 ]; then RUN=runs/demo/denoiser; fi # the demo's own
    af train experiment=denoiser_demo data.root=$L run="$RUN" trainer.max_steps=1600 seed="$SEED" evaluation=none
    for SOLVER in euler midpoint; do
      # shellcheck disable=SC2086
      judged runs/demo/vae/export "$RUN/export" $L "$OUT/${SOLVER}_$SEED" $GUIDED evaluation.solver=$SOLVER
    done
  done
}

for PART in ${PARTS:-package seeds}; do
  "$PART"
done
