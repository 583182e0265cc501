#!/bin/sh
# The logs of metaschedule/, made anew on this machine: six networks, in blocks of channels on a CPU.
#
#     datasets/tune_networks.sh FOLDER [TRIALS PER WORKLOAD]
#
# Takes an idle machine for some 20 minutes on two cores; whatever stops it, the same command goes on. squeezenet is what
# the demo asks about: a workload of it is left out.
set -eu
out=$1
each=${2:-32}
mkdir -p "$out"
light=$(python -c 'import pathlib, onnx; print(pathlib.Path(onnx.__file__).parent / "backend/test/data/light")')

lorien extract "$light/light_squeezenet.onnx" --target native -o "$out/kept.jsonl"
lorien extract "$light/light_bvlc_alexnet.onnx" "$light/light_densenet121.onnx" "$light/light_inception_v1.onnx" \
    "$light/light_resnet50.onnx" "$light/light_shufflenet.onnx" "$light/light_vgg19.onnx" --target native -o "$out/given.jsonl"
python - "$out" <<'CHOOSE'
import sys
from pathlib import Path

from lorien.cli.workloads import read_workloads, write_workloads

out = Path(sys.argv[1])
kept = {workload.key for workload in read_workloads(out / "kept.jsonl")}
write_workloads(out / "networks.jsonl", [w for w in read_workloads(out / "given.jsonl") if w.key not in kept])
CHOOSE
count=$(wc -l < "$out/networks.jsonl")
resume=
if [ -e "$out/started" ]; then resume=--resume; fi
touch "$out/started"
lorien tune "$out/networks.jsonl" --trials $((count * each)) --trials-per-workload "$each" \
    --scheduler round-robin --logs "$out/logs" $resume
