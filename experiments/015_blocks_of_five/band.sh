#!/bin/sh
# A dead band: the avatar of the package and its student, sampled with bands of several widths, judged as they were.
# It needs data/demo-latents-5 (run.sh). Stops and goes on like its parts.
set -eu
W=${W:-af/serve/weights} OUT=${OUT:-runs/dead_band}
for BAND in ${BANDS:-0 0.05 0.1 0.15}; do
  af evaluate evaluation.solver=euler evaluation.schedule=uniform --autoencoder "$W/autoencoder" --denoiser "$W/denoiser" --data data/demo-latents-5/test \
    --out "$OUT/guided-$BAND" evaluation.guidance_audio=2 evaluation.guidance_user=1.5 evaluation.guidance_joint=0 evaluation.dead_band="$BAND" evaluation.videos=2 "$@"
  af evaluate evaluation.solver=euler evaluation.schedule=uniform --autoencoder "$W/autoencoder" --denoiser "$W/student" --data data/demo-latents-5/test \
    --out "$OUT/student-$BAND" evaluation.unguided=true evaluation.steps=1 evaluation.dead_band="$BAND" evaluation.videos=2 "$@"
done
