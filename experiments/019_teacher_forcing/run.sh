#!/bin/sh
# What a denoiser learns from: noisy pasts, clean ones, its own guesses. Then the avatar of the package: a motion VAE trained for
# longer, a denoiser on it, and its student. It needs the shards of `make demo` (data/demo) and data/demo-latents-5
# (VAE=runs/demo/vae/export experiments/015_blocks_of_five/run.sh). Stops and goes on like its parts.
#   SEEDS="0 1"   KINDS="forcing half_clean no_guesses both package longer"   OUT=where things go   VAE=the one to start from
set -eu
VAE=${VAE:-runs/demo/vae/export} OUT=${OUT:-runs/teacher_forcing}

denoiser() { # DATA RUN STEPS [KEY=VALUE ...]
  DATA=$1 RUN=$2 STEPS=$3
  shift 3
  af train experiment=denoiser_demo data.root="$DATA" run="$RUN" trainer.max_steps="$STEPS" evaluation=none \
    callbacks.previews=null "$@"
}

judged() { # VAE DENOISER DATA OUT [KEY=VALUE ...]
  IMAGES=$1 MOTION=$2 DATA=$3 TO=$4
  shift 4
  af evaluate evaluation.solver=euler evaluation.schedule=uniform --autoencoder "$IMAGES" --denoiser "$MOTION" --data "$DATA/test" --out "$TO" evaluation.videos=2 "$@"
}

for KIND in ${KINDS:-forcing half_clean no_guesses both}; do
  for SEED in ${SEEDS:-0}; do
    RUN="$OUT/$KIND-$SEED" LATENTS=data/demo-latents-5
    case $KIND in
      forcing) HOW="scheme=forcing" ;;
      half_clean) HOW="scheme=forcing module.flow_times.clean_probability=0.5" ;;
      no_guesses) HOW="module.histories=null" ;;
      both) HOW= ;;
      package | longer) continue ;;
    esac
    # shellcheck disable=SC2086
    denoiser $LATENTS "$RUN" 1600 seed="$SEED" $HOW "$@"
    judged "$VAE" "$RUN/export" $LATENTS "$RUN/unguided" evaluation.unguided=true
  done
done

case " ${KINDS:-package} " in
  *" package "*)
    GUIDED="evaluation.guidance_audio=0.7 evaluation.guidance_user=0 evaluation.guidance_joint=1"
    L=data/demo-latents-6 T=data/demo-teacher-6
    af train experiment=vae_demo_features start="$VAE" data.root=data/demo run="$OUT/vae" trainer.max_steps=2000 \
      trainer.val_check_interval=500 evaluation=none
    af encode --data data/demo --autoencoder "$OUT/vae/export" --out $L --precision auto
    denoiser $L "$OUT/package" 2400 trainer.val_check_interval=1200
    # shellcheck disable=SC2086
    judged "$OUT/vae/export" "$OUT/package/export" $L "$OUT/package/guided" $GUIDED evaluation.drift=true
    af teacher --solver euler --schedule uniform --data $L --denoiser "$OUT/package/export" --guidance-audio 0.7 --guidance-user 0 --guidance-joint 1 --out $T
    af train experiment=distill_demo start="$OUT/package/export" data.root=$L data.teacher=$T run="$OUT/student" \
      evaluation=none callbacks.previews=null
    judged "$OUT/vae/export" "$OUT/student/export" $L "$OUT/student/one_pass" evaluation.unguided=true evaluation.steps=1 \
      evaluation.drift=true
    ;;
esac

case " ${KINDS:-package} " in
  *" longer "*) # the package's denoiser goes on; it needs nothing but data/demo
    OWN=af/serve/weights L=data/demo-latents-package
    af encode --data data/demo --autoencoder $OWN/autoencoder --out $L --precision auto
    denoiser $L "$OUT/longer" 4500 start=$OWN/denoiser optimizer.lr=1.5e-3 trainer.val_check_interval=900 "$@"
    judged $OWN/autoencoder "$OUT/longer/export" $L "$OUT/longer/unguided" evaluation.unguided=true
    ;;
esac
