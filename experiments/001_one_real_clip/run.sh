#!/bin/sh
# One real conversation through the whole job: ingest, VAE, latents, denoiser, video. Stops and continues like its parts.
#   CLIP=folder with user.mp4, avatar.mp4, avatar.wav and a portrait   OUT=where things go   PORTRAIT=name of the portrait
#   HOLD_OUT="--last 4" holds out the last 4 s (options of hold_out.py)
set -eu
CLIP=${CLIP:?set CLIP to the folder of the clip}
OUT=${OUT:-runs/one_real_clip}
PORTRAIT=${PORTRAIT:-portrait.jpg}
HERE=$(dirname "$0")

# one second in four is held out; the VAE learns at 128 px first, goes on at 256, and looks at faces in the end
for SIZE in 128 256; do
  af ingest --pair "$CLIP/user.mp4" "$CLIP/avatar.mp4" --audio - "$CLIP/avatar.wav" --participants user avatar \
    --size $SIZE --out "$OUT/clips$SIZE"
  af shards validate "$OUT/clips$SIZE"
  # shellcheck disable=SC2086
  python "$HERE/hold_out.py" "$OUT/clips$SIZE/train" "$OUT/data$SIZE" ${HOLD_OUT:---every 4}
done
af train experiment=vae_clip data.root="$OUT/data128" run="$OUT/vae128"
af train experiment=vae_clip256 data.root="$OUT/data256" run="$OUT/vae256" module.start="$OUT/vae128/export"
af train experiment=vae_clip256_face data.root="$OUT/data256" run="$OUT/vae256_face" module.start="$OUT/vae256/export"
af encode --data "$OUT/data256" --autoencoder "$OUT/vae256_face/export" --out "$OUT/latents"
af train experiment=denoiser_clip data.root="$OUT/latents" run="$OUT/denoiser" \
  callbacks.previews.autoencoder="$OUT/vae256_face/export"
af generate --solver euler --schedule uniform --autoencoder "$OUT/vae256_face/export" --denoiser "$OUT/denoiser/export" --portrait "$CLIP/$PORTRAIT" \
  --avatar-audio "$CLIP/avatar.wav" --user-video "$CLIP/user.mp4" --out "$OUT/avatar.mp4" \
  --side-by-side "$OUT/conversation.mp4"
