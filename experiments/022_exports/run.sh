#!/bin/sh
# The avatar of the package on torch and as graphs, judged by the videos of the same conversations. It needs the shards of `make demo`.
#   OUT=where things go   N=conversations   WHO="guided student"
set -eu
OUT=${OUT:-runs/exports} N=${N:-8} HERE=$(dirname "$0")
for WHO in ${WHO:-guided student}; do
  FLAG=
  if [ $WHO = student ]; then FLAG=--student; fi
  python "$HERE/videos.py" --data data/demo/test --out "$OUT/$WHO" --conversations "$N" $FLAG
  for KIND in torch_fp32 onnx_fp32 onnx_fp16_weights onnx_int8_weights; do
    af compare "$OUT/$WHO/$KIND.csv" --out "$OUT/$WHO/table/$KIND" evaluation/tracker=drawn evaluation.protocol.block=5
  done
done
