#!/bin/sh
# One factor at a time, then roll-outs of four minutes. Stopped, the same command goes on with what is not done.
set -eu
LATENTS=${LATENTS:-data/demo-latents-5}
BASE="model.block_frames=10 model.look_ahead=2 module.histories=null" # that of the time
for FACTOR in scheme=forcing,autoregressive,bidirectional model.block_frames=5,25 "model.condition_reach=choice(0)" \
  model.look_ahead=0,4 "model.look_ahead_layers=choice(first)" model.mask=block_causal,frame_lookahead; do
  case $FACTOR in scheme=*) SCHEME= ;; *) SCHEME=scheme=forcing ;; esac
  # shellcheck disable=SC2086
  af train experiment=denoiser_demo name=forcing $SCHEME data.root="$LATENTS" evaluation=none \
    trainer.max_steps=800 trainer.val_check_interval=800 -m seed=0,1,2 $BASE "$FACTOR" "$@"
done
rolled_out() { # RUN NAME [OVERRIDE ...]
  RUN=$1 OUT=$1/evaluation/$2
  shift 2
  [ -f "$OUT/metrics.json" ] || af evaluate evaluation.solver=euler evaluation.schedule=uniform --denoiser "$RUN/export" --data "$LATENTS/test" --linear-probe "$LATENTS/train" \
    --out "$OUT" evaluation.guidance_user=2 "$@"
}
for FOLDER in runs/forcing/*,seed=*; do
  rolled_out "$FOLDER" short
  case $FOLDER in */scheme=*) rolled_out "$FOLDER" long evaluation.drift=true ;; esac
  case $FOLDER in */scheme=forcing,*)
    rolled_out "$FOLDER" long_sink evaluation.drift=true evaluation.anchor_sink=10
    rolled_out "$FOLDER" long_pull evaluation.drift=true evaluation.anchor_pull=0.1
    ;;
  esac
done
af report runs/forcing --metrics reaction_gain,react/smile,react/tilt,react/nod,lip/corr,mouth/corr,border_ratio/pose,latency/waiting/mean_ms,drift/distance/first,drift/distance/last,var_ratio/pitch
"${PYTHON:-python}" "$(dirname "$0")/drift.py" runs/forcing
