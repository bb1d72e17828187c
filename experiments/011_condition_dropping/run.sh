#!/bin/sh
# Each signal for itself x the user's together, two seeds. Stopped, the same command goes on.
set -eu
LATENTS=${LATENTS:-data/demo-latents}
af train sweep=dropout evaluation.solver=euler evaluation.schedule=uniform data.root="$LATENTS" trainer.max_steps=800 -m "$@"
af report runs/dropout
