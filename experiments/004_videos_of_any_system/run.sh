#!/bin/sh
# Videos that no model here made, against true ones: the true ones themselves, and the same half a second late.
#   CLIP=folder with user.mp4, avatar.mp4, avatar.wav   OUT=where things go
set -eu
CLIP=${CLIP:?set CLIP to the folder of the clip}
OUT=${OUT:-runs/videos_of_any_system}

python "$(dirname "$0")/prepare.py" "$CLIP" "$OUT/videos"
af compare "$OUT/videos/copy.csv" evaluation.protocol.block=10 --out "$OUT/copy"
af compare "$OUT/videos/late.csv" evaluation.protocol.block=10 --out "$OUT/late"
