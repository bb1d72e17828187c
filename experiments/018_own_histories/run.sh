#!/bin/sh
# Does a denoiser that has trained on its own histories stay nearer to true motion? Beside one that trained as long without.
# It needs data/demo-latents-5 (experiments/015_blocks_of_five/run.sh). Stops and goes on like its parts.
#   SEEDS="0 1"   KINDS="control guessed at_once own"   STEPS=800   OUT=where things go
set -eu
W=${W:-af/serve/weights} LATENTS=${LATENTS:-data/demo-latents-5} OUT=${OUT:-runs/own_histories}
for SEED in ${SEEDS:-0 1}; do
  for KIND in ${KINDS:-control guessed at_once}; do
    RUN="$OUT/$KIND-$SEED" HISTORIES=histories@module.histories=guessed
    case $KIND in
      control) HISTORIES="module.histories=null" ;;
      at_once) HISTORIES="$HISTORIES module.histories.return_frames=0" ;;
      own)
        af teacher --solver euler --schedule uniform --data "$LATENTS" --denoiser "$W/denoiser" --guidance-audio 2 --guidance-user 1.5 --guidance-joint 0 --out data/demo-teacher-5
        HISTORIES="histories@module.histories=own data.teacher=data/demo-teacher-5" ;;
    esac
    # shellcheck disable=SC2086
    af train experiment=denoiser_demo scheme=forcing start="$W/denoiser" data.root="$LATENTS" run="$RUN" seed="$SEED" \
      optimizer.lr=5e-4 trainer.max_steps="${STEPS:-800}" evaluation=none callbacks.previews=null $HISTORIES "$@"
    for BAND in ${BANDS:-0 0.1}; do
      af evaluate evaluation.solver=euler evaluation.schedule=uniform --autoencoder "$W/autoencoder" --denoiser "$RUN/export" --data "$LATENTS/test" --out "$RUN/band-$BAND" \
        evaluation.guidance_user=1.5 evaluation.dead_band="$BAND" evaluation.videos=2 evaluation.drift=true
    done
  done
done
af report "$OUT"
