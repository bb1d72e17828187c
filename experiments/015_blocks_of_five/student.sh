#!/bin/sh
# A student of one pass a block, taught by the avatar of the package, and judged as it was. Stops and goes on like its parts.
# It needs data/demo-latents-5 (run.sh).
set -eu
W=${W:-af/serve/weights} RUN=${RUN:-runs/student_of_five}
af teacher --solver euler --schedule uniform --data data/demo-latents-5 --denoiser "$W/denoiser" --guidance-audio 2 --guidance-user 1.5 --guidance-joint 0 --out data/demo-teacher-5
af train experiment=distill_demo scheme=forcing module.flow_times.clean_probability=0.5 module.histories=null start="$W/denoiser" data.root=data/demo-latents-5 data.teacher=data/demo-teacher-5 run="$RUN" \
  evaluation=none callbacks.previews=null "$@"
af evaluate evaluation.solver=euler evaluation.schedule=uniform --autoencoder "$W/autoencoder" --denoiser "$RUN/export" --data data/demo-latents-5/test --out "$RUN/evaluation" \
  evaluation.unguided=true evaluation.steps=1 evaluation.videos=2
