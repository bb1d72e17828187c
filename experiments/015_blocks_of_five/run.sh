#!/bin/sh
# The denoiser of the package's avatar, in blocks of 5, judged on decoded videos. Stops and goes on like its parts.
# It needs the shards of `make demo` (data/demo).
set -eu
VAE=${VAE:-af/serve/weights/autoencoder}
RUN=${RUN:-runs/blocks_of_five}
af encode --data data/demo --autoencoder "$VAE" --out data/demo-latents-5 --precision auto
af train experiment=denoiser_demo data.root=data/demo-latents-5 run="$RUN" evaluation=none callbacks.previews=null "$@"
af evaluate evaluation.solver=euler evaluation.schedule=uniform --autoencoder "$VAE" --denoiser "$RUN/export" --data data/demo-latents-5/test --out "$RUN/evaluation" \
  evaluation.guidance_user=2 evaluation.videos=2
