#!/bin/sh
# The main job, end to end, with the commands a user would type. Run it again: each step does only what is new.
set -eu
here=$(dirname "$0")
out=${1:-demo-out}
mkdir -p "$out"

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# A real network that none of the logs has seen: its ONNX graph ships in the onnx package.
model=$(python -c 'import pathlib, onnx; print(pathlib.Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx")')

step lorien ingest "$here/metaschedule" --dialect metaschedule --logs "$out/logs"
step lorien featurize "$out/logs" -o "$out/features"
step lorien-train "$out/features" -o "$out/models" --preset fast --reuse
step lorien extract "$model" --target native --match 'conv2d|dense|matmul' --heaviest 6 -o "$out/workloads.jsonl"
step lorien rank "$out/workloads.jsonl" --models "$out/models" --target native --top-k 8 --verify --db "sqlite:///$out/schedules.db"
