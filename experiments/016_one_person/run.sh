#!/bin/sh
# One person's motion VAE from minutes of video, before and after, on held-out clips. Stops and continues like its parts.
#   MANIFEST=me.csv   BASE=model folder   PEOPLE=shards of other people who are held out of the base   OUT=where things go
set -eu
OUT=${OUT:-runs/one_person}
af ingest --manifest "$MANIFEST" --out "$OUT/clips" --size 128 --detector mediapipe --max-seconds 4
af shards holdout "$OUT/clips" --out "$OUT/data" --seconds "${SECONDS_HELD:-8}"
af train experiment=person start="$BASE" data.root="$OUT/data" run="$OUT/vae" "$@"
for M in before="$BASE" after="$OUT/vae/export"; do
  af probe --real --autoencoder "${M#*=}" --data "$OUT/data/test" --others "$PEOPLE" --out "$OUT/table/${M%%=*}"
done
af report "$OUT/table" --out "$OUT/report" --metrics driven/psnr,driven/r2/jaw,driven/r2/smile,driven/r2/blink,driven/moves/jaw,driven/moves/smile,driven/moves/blink,driven/identity/geometry/across/rank1
