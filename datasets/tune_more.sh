#!/bin/sh
# More logs of our own: many workloads with few trials each, which teach a model more than few workloads with many.
#
#     datasets/tune_more.sh FOLDER [TRIALS PER WORKLOAD]
#
# Takes an idle machine for about 2 s a trial; whatever stops it, the same command goes on. Two networks are left alone:
# squeezenet, which the demo asks about, and resnet50, which benchmarks hold out. No rule is applied to them, and what a
# rule makes that is a workload of theirs is dropped: a model may be judged on either.
set -eu
here=$(dirname "$0")
out=$1
each=${2:-32}
mkdir -p "$out"
light=$(python -c 'import pathlib, onnx; print(pathlib.Path(onnx.__file__).parent / "backend/test/data/light")')
operators='conv2d|dense|matmul|pool'

cat > "$out/rules.yaml" <<'RULES'
version: 1
rules:
  - match: conv2d
    channels: [x0.5, x1.5, x2]
  - match: conv2d
    spatial: [x0.5, x2]
  - match: matmul|dense
    batch: [8, 64]
RULES

lorien extract "$light/light_squeezenet.onnx" "$light/light_resnet50.onnx" --target native -o "$out/kept.jsonl"
lorien extract "$light/light_bvlc_alexnet.onnx" "$light/light_densenet121.onnx" "$light/light_inception_v1.onnx" \
    "$light/light_inception_v2.onnx" "$light/light_shufflenet.onnx" "$light/light_vgg19.onnx" \
    "$light/light_zfnet512.onnx" --target native --match "$operators" -o "$out/given.jsonl" ||
    test -s "$out/given.jsonl" # a model that cannot be read is reported, and the others are kept
python - "$out" <<'CHOOSE'
"""Workloads to tune: none of a network kept apart; new shapes are of a network of their own, <network>-mutated."""
import dataclasses
import sys
from pathlib import Path

from lorien.cli.workloads import merge, read_workloads, write_workloads
from lorien.mutate import load_rules, mutate

out = Path(sys.argv[1])
kept = {workload.key for workload in read_workloads(out / "kept.jsonl")}
given = [workload for workload in read_workloads(out / "given.jsonl") if workload.key not in kept]
known = kept | {workload.key for workload in given}
mutated = {}
left_out = 0
for network in sorted({network for workload in given for network in workload.networks}):
    report = mutate([workload for workload in given if network in workload.networks], load_rules(out / "rules.yaml"))
    left_out += len(report.unsupported) + len(report.invalid)
    for workload in report.workloads:
        made = dataclasses.replace(workload, networks=(f"{network}-mutated",))
        if made.key not in known:
            mutated[made.key] = merge(mutated[made.key], made) if made.key in mutated else made
write_workloads(out / "given-to-tune.jsonl", given)
# In an order without meaning: whenever it is stopped, all networks have had as many trials.
write_workloads(out / "mutated-to-tune.jsonl", [mutated[key] for key in sorted(mutated)])
print(f"{len(given)} workloads of networks and {len(mutated)} made of them; {left_out} that no rule fits or no operator is")
CHOOSE

for name in given mutated; do
    count=$(wc -l < "$out/$name-to-tune.jsonl")
    resume=
    if [ -d "$out/logs/sessions" ] && [ -e "$out/$name-started" ]; then resume=--resume; fi
    touch "$out/$name-started"
    lorien tune "$out/$name-to-tune.jsonl" --trials $((count * each)) --trials-per-workload "$each" \
        --scheduler round-robin --logs "$out/logs" $resume
done
