"""What the dialects beside TVM's own two come to: Ansor's logs, old MetaSchedule logs, traces as features, Halide.

    python benchmarks/dialects.py --data DATASETS [--ansor] [--legacy] [--traces] [--halide] [--work FOLDER]

``DATASETS`` holds ``auto_scheduler/<device>/<operator>.json.gz``, ``metaschedule_legacy/<log>/`` and
``metaschedule/<target>/<network>/``; Halide needs none: it tunes workloads here first. With ``--work`` what was tuned
stays, and a second run goes on with it; so does the model that was trained on it.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import machine, markdown, run

DEVICES = ("cuda_k80", "cuda_v100", "rocm_gfx906")
OTHER, OTHER_ARCH = "cuda_sm75", b"-arch=sm_75"
"""A V100 is of sm_70 and runs no code for sm_75: the device of these lines was four to five times slower."""
SCORES = ("top1_mean", "top5_mean", "top10_mean", "spearman_mean", "random_top1_mean", "random_top5_mean")
HELD_OUT_NETWORKS = ("resnet50", "squeezenet")

TRIALS = 8
BUDGET_S = 12
"""Seconds for an answer, its search, builds and runs."""
TRAINING = (
    "matmul:512,512,512", "matmul:256,1024,256", "matmul:128,768,768",
    "conv2d:28,28,64,64,3", "conv2d:56,56,32,64,3", "conv2d:14,14,128,256,1",
    "depthwise_conv2d:56,56,64,3", "depthwise_conv2d:28,28,256,3", "depthwise_conv2d:112,112,32,5",
    "blur:1024,1024", "blur:480,640",
    "unsharp:480,640", "unsharp:1080,1920",
    "resize:720,1280,2", "resize:512,512,4",
    "softmax:256,1024", "softmax:1024,256",
    "layer_norm:256,1024", "layer_norm:1024,512",
    "histogram_equalisation:720,1280",
)  # fmt: skip
HELD_OUT = (
    "matmul:384,384,768", "conv2d:28,28,128,128,3", "depthwise_conv2d:56,56,128,3", "blur:720,1280", "unsharp:720,1280",
    "softmax:512,768",
)  # fmt: skip


def ansor(data: Path, scratch: Path, preset: str) -> None:
    """Speed of featurizing all logs; scores of workloads held out, by device."""
    logs, features = scratch / "logs", scratch / "features"
    for device, folder in by_device(data / "auto_scheduler", scratch / "devices").items():
        run("lorien", "ingest", folder, "--dialect", "auto_scheduler", "--target", device, "--logs", logs)
    done = run("lorien", "featurize", logs, "-o", features).value
    print(
        f"\nAnsor: {done['rows']:,} records in {done['seconds']:.1f} s, {done['rows'] / done['seconds']:,.0f} records/s"
    )
    trained = run("lorien-train", features, "-o", scratch / "models", "--preset", preset).value["models"]
    rows = [
        [target, report["rows"], round(report["fit_seconds"]), report["holdout"]["workloads"]]
        + [report["holdout"][score] for score in SCORES]
        for target, report in trained.items()
    ]
    columns = ["target", "training rows", "fit s", "workloads", *SCORES]
    print(f"\neach workload held out once, preset {preset}, {machine()}\n\n{markdown(columns, rows)}", flush=True)


def by_device(data: Path, scratch: Path) -> dict[str, Path]:
    """Folders of logs by target: that of the V100 also holds lines of another device, which are taken out of it."""
    folders = {device: data / device for device in DEVICES}
    mixed = folders["cuda_v100"]
    folders |= {device: scratch / device for device in ("cuda_v100", OTHER)}
    for log in sorted(mixed.iterdir()):
        content = gzip.decompress(log.read_bytes()).splitlines(keepends=True)
        for device in ("cuda_v100", OTHER):
            if lines := [line for line in content if (OTHER_ARCH in line) == (device == OTHER)]:
                folders[device].mkdir(parents=True, exist_ok=True)
                (folders[device] / log.name).write_bytes(gzip.compress(b"".join(lines), 1))
    return folders


def legacy(data: Path, scratch: Path) -> None:
    """Speed of reading and featurizing the old log, and of replaying all of it on today's TVM."""
    (log,) = (data / "metaschedule_legacy").iterdir()
    logs = scratch / "logs"
    read = run("lorien", "ingest", log, "--dialect", "metaschedule_legacy", "--logs", logs)
    done = run("lorien", "featurize", logs, "-o", scratch / "features").value
    arguments = (log, "--dialect", "metaschedule_legacy", "--migrate", "--logs", scratch / "migrated")
    moved = run("lorien", "ingest", *arguments)
    counts = moved.value["migrated"]
    rows = [
        ["read and counted", read.value["records"], read.seconds, read.value["records"] / read.seconds],
        ["featurized", done["rows"], done["seconds"], done["rows"] / done["seconds"]],
        ["migrated: replayed", counts["records"], moved.seconds, counts["records"] / moved.seconds],
    ]
    print(f"\nold MetaSchedule, {read.value['failed']:,} failed measurements, {machine()}\n")
    print(markdown(["what", "records", "seconds", "records/s"], rows))
    print(
        f"\n{counts['rebuilt']} of {counts['workloads']} workloads rebuilt, {counts['replayed']} records replay",
        flush=True,
    )


def traces(data: Path, scratch: Path, preset: str) -> None:
    """Scores with traces as features beside lowered ones, networks held out."""
    (target,) = (data / "metaschedule").iterdir()
    logs, rows = scratch / "logs", []
    run("lorien", "ingest", target, "--dialect", "metaschedule", "--logs", logs)
    for name, options in (("lowered", ()), ("trace", ("--features", "metaschedule_trace"))):
        features = scratch / name
        done = run("lorien", "featurize", logs, "-o", features, *options).value
        for network in HELD_OUT_NETWORKS:
            models = scratch / f"models-{name}-{network}"
            run("lorien-train", features, "-o", models, "--preset", preset, "--holdout-network", network)
            scored = run("lorien", "evaluate", features, "--models", models, "--holdout-network", network)
            (scores,) = scored.value["targets"].values()
            rows.append([name, done["rows"] / done["seconds"], network, *(scores[score] for score in SCORES)])
    print(f"\nMetaSchedule, features of traces beside lowered ones, preset {preset}, {machine()}\n")
    print(markdown(["features", "records/s", "held out", *SCORES], rows), flush=True)


def halide(scratch: Path, preset: str) -> None:
    """The verified top 8 of a trained model beside Adams2019's own choice, on workloads it has not seen."""
    scratch.mkdir(parents=True, exist_ok=True)
    training, held_out, logs = scratch / "training.jsonl", scratch / "held_out.jsonl", scratch / "logs"
    for path, names in ((training, TRAINING), (held_out, HELD_OUT)):
        run("lorien", "extract", *names, "--dialect", "halide", "-o", path)
    options = ("--logs", logs, "--strategy", "ranked", "--batch", str(TRIALS), "--trials-per-workload", str(TRIALS))
    tuned = run("lorien", "tune", training, "--trials", str(TRIALS * len(TRAINING)), *options, "--resume")
    run("lorien", "featurize", logs, "-o", scratch / "features")
    run("lorien-train", scratch / "features", "-o", scratch / "models", "--preset", preset, "--reuse")
    budget = ("--budget", f"{BUDGET_S}s")
    ranked = run("lorien", "rank", held_out, "--models", scratch / "models", "--top-k", "8", "--verify", *budget)
    rows: list[list[Any]] = []
    for answer in ranked.value["workloads"]:
        times = [trial["latency_s"] for trial in answer["top_k"] if trial["latency_s"]]
        own_s, best_s, first_s = answer["default_latency_s"], min(times), answer["rank1_latency_s"]
        rows.append([answer["name"], 1e3 * own_s, 1e3 * first_s, 1e3 * best_s, own_s / best_s, answer["seconds"]])
    rows.append(["geometric mean", None, None, None, statistics.geometric_mean([row[4] for row in rows]), None])
    rows[-1][-1] = statistics.fmean(row[5] for row in rows[:-1])
    columns = ["workload", "Adams2019's own ms", "rank 1 ms", "verified top 8 ms", "own / top 8", "seconds"]
    print(f"\nHalide, {tuned.value['trials']} trials to learn from, preset {preset}, {machine()}\n")
    print(markdown(columns, rows), flush=True)


def main() -> None:
    """Run what was asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--preset", default="fast")
    for name in ("ansor", "legacy", "traces", "halide"):
        parser.add_argument(f"--{name}", action="store_true")
    given = parser.parse_args()
    chosen = {name for name in ("ansor", "legacy", "traces", "halide") if getattr(given, name)}
    chosen = chosen or {"ansor", "legacy", "traces", "halide"}
    if given.data is None and chosen != {"halide"}:
        parser.error("--data DATASETS is needed for all but --halide")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = given.work or Path(temporary)
        if "ansor" in chosen:
            ansor(given.data, scratch / "ansor", given.preset)
        if "legacy" in chosen:
            legacy(given.data, scratch / "legacy")
        if "traces" in chosen:
            traces(given.data, scratch / "traces", given.preset)
        if "halide" in chosen:
            halide(scratch / "halide", given.preset)


if __name__ == "__main__":
    main()
