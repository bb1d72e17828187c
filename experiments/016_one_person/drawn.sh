#!/bin/sh
# The same with a drawn person whom the avatar of `af live` has not met: motion VAE, then denoiser.
#   OUT=where things go   SEED=of the person
set -eu
OUT=${OUT:-runs/one_person_drawn} SEED=${SEED:-1000} BASE=${BASE:-af/serve/weights} HERE=$(dirname "$0")
for KIND in "" --both; do
  D=$OUT/data$KIND
  [ -d "$D/train" ] || python "$HERE/drawn.py" "$OUT/clips$KIND" --seed "$SEED" $KIND
  af shards holdout "$OUT/clips$KIND" --out "$D" --seconds 20
done
af train experiment=person start="$BASE/autoencoder" data.root="$OUT/data" run="$OUT/vae" \
  data.regions._target_=af.synth.render.EyesAndMouth data.vary=null "$@"
for M in before="$BASE/autoencoder" after="$OUT/vae/export"; do
  af evaluate --autoencoder "${M#*=}" --data "$OUT/data/test" --out "$OUT/table/vae/${M%%=*}"
done
af encode --data "$OUT/data--both" --autoencoder "$OUT/vae/export" --out "$OUT/latents"
af train experiment=person_denoiser start="$BASE/denoiser" data.root="$OUT/latents" module.flow_times.levels=each run="$OUT/denoiser" callbacks.previews=null
for M in before="$BASE/denoiser" after="$OUT/denoiser/export"; do
  af evaluate evaluation.solver=euler evaluation.schedule=uniform --autoencoder "$OUT/vae/export" --denoiser "${M#*=}" --data "$OUT/latents/test" \
    --out "$OUT/table/denoiser/${M%%=*}" evaluation.guidance_audio=2 evaluation.guidance_user=1 evaluation.guidance_joint=0 evaluation.dead_band=0
done
af report "$OUT/table/vae" --out "$OUT/report/vae" --metrics psnr,ssim
af report "$OUT/table/denoiser" --out "$OUT/report/denoiser" --metrics mouth/corr,lip/corr,fd/exp,fd/pose,react/smile
