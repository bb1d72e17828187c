#!/bin/sh
# An hour for each part: the motion VAE of the package goes on, three denoisers begin anew on it, one of them teaches a student. It needs
# the shards of `make demo` (data/demo). Stops and goes on like its parts. Some three hours of two cores.
#   SEEDS="0 1 2"   OUT=where things go   VAE=the one to start from (the package's, at fa77b0f)
set -eu
VAE=${VAE:-af/serve/weights/autoencoder} OUT=${OUT:-runs/hour} L=data/demo-latents-hour T=data/demo-teacher-hour
GUIDED="evaluation.guidance_audio=0.7 evaluation.guidance_user=0 evaluation.guidance_joint=1"

judged() { # DENOISER OUT [KEY=VALUE ...]
  MOTION=$1 TO=$2
  shift 2
  af evaluate --autoencoder "$OUT/vae/export" --denoiser "$MOTION" --data "$L/test" --out "$TO" evaluation.videos=2 \
    evaluation.schedule=uniform "$@"
}

af train experiment=vae_demo_features start="$VAE" data.root=data/demo run="$OUT/vae" trainer.max_steps=4000 \
  trainer.val_check_interval=1000 evaluation=none
af encode --data data/demo --autoencoder "$OUT/vae/export" --out $L --precision auto
for SEED in ${SEEDS:-0 1 2}; do
  RUN="$OUT/denoiser_$SEED"
  af train experiment=denoiser_demo data.root=$L run="$RUN" trainer.max_steps=3000 trainer.val_check_interval=1000 \
    evaluation=none callbacks.previews=null seed="$SEED"
  # shellcheck disable=SC2086
  judged "$RUN/export" "$OUT/eval/guided_$SEED" $GUIDED evaluation.dead_band=0.05
done
af teacher --schedule uniform --data $L --denoiser "$OUT/denoiser_0/export" --guidance-audio 0.7 --guidance-user 0 --guidance-joint 1 --out $T
af train experiment=distill_demo start="$OUT/denoiser_0/export" data.root=$L data.teacher=$T run="$OUT/student" evaluation=none \
  callbacks.previews=null trainer.max_steps=2400
judged "$OUT/student/export" "$OUT/eval/student" evaluation.unguided=true evaluation.steps=1 evaluation.solver=euler evaluation.dead_band=0.05
python -m af.serve.ship --autoencoder "$OUT/vae" --denoiser "$OUT/denoiser_0" --student "$OUT/student" --out "$OUT/weights"
