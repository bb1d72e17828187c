#!/bin/sh
# Do exports with weights of 16 and 8 bits move as the one in fp32 does? Stops and continues like its parts.
#   OUT=where things go   CLIPS=conversations
set -eu
OUT=${OUT:-runs/exports}
HERE=$(dirname "$0")
python "$HERE/videos.py" --out "$OUT" --clips "${CLIPS:-32}"
for K in "$OUT"/*/clips.csv; do
  K=$(basename "$(dirname "$K")")
  af compare "$OUT/$K/clips.csv" --out "$OUT/table/$K" evaluation/tracker=drawn evaluation.protocol.block=5 \
    evaluation.videos=0
done
af report "$OUT/table" --out "$OUT/report"
