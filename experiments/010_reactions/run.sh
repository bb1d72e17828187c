#!/bin/sh
# The paper's Table 5: bases with and without the user's motion, then the preference stage on the former.
# Words of this command are for every training, those in BASE for the bases alone. Stopped, the same command goes on.
set -eu
LATENTS=${LATENTS:-data/demo-latents} BASE=${BASE:-}
af train sweep=reactions evaluation.solver=euler evaluation.schedule=uniform data.root="$LATENTS" $BASE -m "$@"
af train sweep=reactions evaluation.solver=euler evaluation.schedule=uniform data.root="$LATENTS" $BASE module.dropout.user_motion=1.0 \
  evaluation.conditions=avatar_audio+user_audio -m variant=no_user_motion "$@"
af train sweep=reactions_preference evaluation.solver=euler evaluation.schedule=uniform module.online.source.solver=euler module.online.source.schedule=uniform data.root="$LATENTS" -m "$@"
af report runs/reactions
