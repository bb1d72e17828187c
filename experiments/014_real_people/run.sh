#!/bin/sh
# A motion VAE of real people at 128 px, and what of a driving face arrives in its images. Stops and continues like its parts.
set -eu
OUT=${OUT:-runs/real_people}
af ingest --manifest "$MANIFEST" --out "$OUT/data" --size 128 --detector mediapipe --workers 2
af train experiment=vae_people_encoder data.root="$OUT/data" run="$OUT/encoder" "$@"
af train experiment=vae_people64 data.root="$OUT/data" run="$OUT/vae64" encoder="$OUT/encoder/export" "$@"
af train experiment=vae_people data.root="$OUT/data" run="$OUT/vae128" encoder="$OUT/encoder/export" \
  start="$OUT/vae64/export" "$@"
af probe --real --autoencoder "$OUT/vae128/export" --data "$OUT/data/test" --out "$OUT/probe"
