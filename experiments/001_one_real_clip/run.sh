#!/bin/sh
# One real conversation through the whole job: ingest, VAE, latents, denoiser, film. Stops and continues like its parts.
#   CLIP=folder with user.mp4, avatar.mp4, avatar.wav and a portrait   OUT=where things go   PORTRAIT=name of the portrait
set -eu
CLIP=${CLIP:?set CLIP to the folder of the clip}
OUT=${OUT:-runs/one_real_clip}
PORTRAIT=${PORTRAIT:-portrait.jpg}

af ingest --pair "$CLIP/user.mp4" "$CLIP/avatar.mp4" --audio - "$CLIP/avatar.wav" --participants user avatar \
  --size 128 --split train --out "$OUT/data"
af shards validate "$OUT/data"
af train experiment=vae_clip data.root="$OUT/data" run="$OUT/vae"
af encode --data "$OUT/data" --autoencoder "$OUT/vae/export" --out "$OUT/latents"
af train experiment=denoiser_clip data.root="$OUT/latents" run="$OUT/denoiser" \
  callbacks.previews.autoencoder="$OUT/vae/export"
af generate --autoencoder "$OUT/vae/export" --denoiser "$OUT/denoiser/export" --portrait "$CLIP/$PORTRAIT" \
  --avatar-audio "$CLIP/avatar.wav" --user-video "$CLIP/user.mp4" --out "$OUT/avatar.mp4" \
  --side-by-side "$OUT/conversation.mp4"
