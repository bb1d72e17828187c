#!/bin/sh
# Videos that no model here made, against true ones: the true ones themselves, and the same half a second late.
#   CLIP=folder with user.mp4, avatar.mp4, avatar.wav   OUT=where things go
set -eu
CLIP=${CLIP:?set CLIP to the folder of the clip}
OUT=${OUT:-runs/videos_of_any_system}

python "$(dirname "$0")/prepare.py" "$CLIP" "$OUT/videos"
af evaluate --manifest "$OUT/videos/copy.csv" --block 10 --out "$OUT/copy"
af evaluate --manifest "$OUT/videos/late.csv" --block 10 --out "$OUT/late"
