#!/bin/sh
# Ten minutes: conversations of drawn people whom nobody has seen, answered by the avatar of the package as a graph; the first and the last
# minute are judged by their videos. Stops and goes on like its parts. Two minutes of a core a conversation.
#   OUT=where things go   MODELS=folder of models   N=conversations (16; 6 in the README)
set -eu
OUT=${OUT:-runs/ten_minutes} MODELS=${MODELS:-af/serve/weights} N=${N:-16} HERE=$(dirname "$0")
af synth --out data/long --train 0 --val 0 --test "$N" --seconds 600 --seed 7
af export "$MODELS" --to onnx --out "$OUT/onnx"
python "$HERE/minutes.py" --data data/long/test --export "$OUT/onnx" --out "$OUT"
for MINUTE in first last; do
  af compare "$OUT/$MINUTE.csv" --out "$OUT/table/$MINUTE" evaluation/tracker=drawn evaluation.protocol.block=5
done
