#!/bin/sh
# Motion VAEs with more or fewer directions and with a KL term, probed. Stopped, the same command goes on.
set -eu
DATA=${DATA:-data/demo} PROBE=${PROBE:-}
train() {
  # nobody tells the coefficients what to be, and no pixel counts more than another: only the bottleneck differs
  af train experiment=vae_demo name=latent_size data.root="$DATA" evaluation=none loss.guide=0 data.faces=false \
    trainer.max_steps=900 trainer.val_check_interval=900 -m seed=choice\(0\) "$@"
}
train model.directions=5,10,20,40 "$@"
train model.directions=20 +model.variational=true +loss.kl=1e-4,1e-2 +loss.kl_warmup_steps=200 "$@"
for RUN in runs/latent_size/*,seed=*; do
  [ -f "$RUN/evaluation/metrics.json" ] ||
    af probe --autoencoder "$RUN/export" --data "$DATA/test" --out "$RUN/evaluation" $PROBE
done
af report runs/latent_size --metrics psnr,transfer/psnr,transfer/r2/expression,transfer/r2/pose,transfer/agreement/expression,transfer/agreement/pose,transfer/identity/colours,transfer/identity/proportions,probe/face_from_motion/mean,probe/person_named_from_motion,probe/identity_from_motion,smoothness/roughness
