"""Whole networks beside ONNX Runtime: tuned, built unseen, unscheduled, and by stock TVM; all timed in turns.

    python benchmarks/deliver.py models  --work WORK [--network squeezenet ...]
    python benchmarks/deliver.py tune    --work WORK [--network squeezenet ...] [--trials 64]
    python benchmarks/deliver.py stock   --work WORK [--network squeezenet ...] [--trials 64]
    python benchmarks/deliver.py prepare --work WORK [--network squeezenet ...] [--data DATASETS]
    python benchmarks/deliver.py measure --work WORK [--network squeezenet ...] [--models URL] [--budgets 60]
    python benchmarks/deliver.py report

``models`` writes model files with random weights (``networks.py`` says what it needs). ``tune`` tunes the workloads of
each with ``lorien tune --model none``, those of squeezenet and resnet50 in the plain layout too. ``stock`` tunes
squeezenet and the transformer with TVM's ``static_shape_tuning_pipeline``, without and with ``cpu_weight_prepack``.
``prepare`` trains a model without the network, on what ``tune`` left of the others and on the logs of a data set.
A step that was done is left out, unless ``--again`` is given; tuning that was interrupted goes on.

``measure`` builds every variant of a network and times them in turns: in each round every variant has a process of its
own, which ends before the next one starts. A latency is the median over the rounds; a speed is ONNX Runtime's latency
over the variant's in the same run. Outputs are compared with ONNX Runtime's on random inputs. It wants an idle machine,
and refuses a busy one without ``--busy``. Its results go to benchmarks/results/deliver, by network; ``report`` prints
all that are there for this machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networks
import numpy as np
import stock
from harness import about, markdown, result_path, run, write_result

from lorien.dialects import resolve_target
from lorien.machine import available_cores
from lorien.tune.contention import BUSY_CORES, Watch

PLAIN_TOO = ("squeezenet", "resnet50")
STOCK = ("squeezenet", "transformer")
TOLERANCE = 1e-3
"""Largest error of an output, relative to its largest value. What is beyond has no speed."""
IDLE_S = 3.0
POLL_S = 30.0
PACKAGES = ("onnxruntime", "onnx", "torch", "torchvision")
REFERENCE = "ONNX Runtime"
HERE = Path(__file__).parent


@dataclass
class Variant:
    """A network in one form, and what its turns gave.

    ``about`` says what it took to get there: seconds of builds and tuning, numbers of workloads and trials.
    """

    name: str
    file: Path
    about: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    error: float | None = None

    @property
    def latency_s(self) -> float:
        """Median over the rounds."""
        return statistics.median(one["latency_s"] for one in self.rounds)

    def result(self, reference_s: float) -> dict[str, Any]:
        """What is kept of it."""
        right = self.error is None or self.error <= TOLERANCE
        return {
            "latency_s": self.latency_s,
            "speed": reference_s / self.latency_s if right else None,
            "error": self.error,
            "disturbed_rounds": sum(one["disturbed"] for one in self.rounds),
            "rounds": self.rounds,
            **self.about,
        }


class Network:
    """A network and its files in the folder of a benchmark's work."""

    def __init__(self, work: Path, name: str) -> None:
        self.name = name
        self.work = work
        self.folder = work / name
        self.files = networks.files_of(work / "models", name)
        self.models = self.folder / "models"
        self.folder.mkdir(parents=True, exist_ok=True)

    def answer(self, step: str) -> Path:
        """The JSON that a step leaves when it is done."""
        return self.folder / f"{step}.json"

    def database(self, layout: str) -> str:
        """URL of the schedules that were tuned in a layout."""
        return f"sqlite:///{self.folder / f'{layout}.db'}"

    def lorien(self, command: str, layout: str) -> tuple[str | Path, ...]:
        """The beginning of ``lorien extract`` or ``lorien build``."""
        return ("lorien", command, self.files.lorien, *self.files.trust, "--layout", layout)


def once(network: Network, step: str, wanted: dict[str, Any], again: bool, work: Callable[[], dict[str, Any]]) -> None:
    """Do a step unless it was done with the same settings, and write down what it answers."""
    answer = network.answer(step)
    if not again and answer.exists() and json.loads(answer.read_text()).items() >= wanted.items():
        print(f"{network.name}: {step} was done, --again does it anew", flush=True)
        return
    answer.unlink(missing_ok=True)
    started_s = time.perf_counter()
    print(f"{network.name}: {step}", flush=True)
    answer.write_text(json.dumps(wanted | work()) + "\n")
    print(f"{network.name}: {step} done in {time.perf_counter() - started_s:.1f} s", flush=True)


def models(network: Network, again: bool) -> None:
    """Write the model files."""

    def work() -> dict[str, Any]:
        files = networks.write(network.work / "models", network.name)
        return {"files": [file.name for file in {files.lorien, files.onnx}]}

    once(network, "models", {"seed": networks.SEED}, again, work)


def tune(network: Network, layout: str, trials: int, again: bool) -> None:
    """Tune a network's workloads in a layout, from nothing or from where an interrupted run left."""
    workloads, logs = network.folder / f"workloads-{layout}.jsonl", network.folder / f"logs-{layout}"
    if again:
        shutil.rmtree(logs, ignore_errors=True)
        (network.folder / f"{layout}.db").unlink(missing_ok=True)

    def work() -> dict[str, Any]:
        run(*network.lorien("extract", layout), "--target", "native", "-o", workloads)
        count = len(workloads.read_text().splitlines())
        limits = ("--trials", str(count * trials), "--trials-per-workload", str(trials))
        stores = ("--logs", logs, "--db", network.database(layout))
        done = run("lorien", "tune", workloads, "--model", "none", *limits, *stores, "--resume")
        kept = ("trials", "measured", "seconds", "disturbed", "disturbance")
        return {"workloads": count, **{key: done.value[key] for key in kept}}

    once(network, f"tune-{layout}", {"trials_per_workload": trials}, again, work)


def tune_stock(network: Network, prepack: bool, trials: int, again: bool) -> None:
    """Tune and build a network with TVM's own pipeline; interrupted, it begins anew."""
    step = stock_name(prepack)

    def work() -> dict[str, Any]:
        folder = network.folder / step
        shutil.rmtree(folder, ignore_errors=True)
        return run_stock(network, folder, trials, prepack)

    once(network, step, {"trials_per_workload": trials}, again, work)


def stock_name(prepack: bool) -> str:
    """Name of a stock variant."""
    return "stock-prepacked" if prepack else "stock"


def run_stock(network: Network, folder: Path, trials: int, prepack: bool = False) -> dict[str, Any]:
    """Run ``stock.py`` in a process of its own, and say now and then how many trials were done."""
    folder.mkdir(parents=True)
    options = ("--trials", str(trials), *(["--prepack"] if prepack else []))
    command = [sys.executable, str(HERE / "stock.py"), str(network.files.onnx), "-o", str(folder), *options]
    said = folder / "said.txt"
    with said.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as child:
        while child.poll() is None:
            try:
                child.wait(POLL_S)
            except subprocess.TimeoutExpired:
                print(f"{network.name}: {stock.trials_in(folder)} trials by stock TVM", flush=True)
    if child.returncode:
        sys.exit(f"{' '.join(command)} left with {child.returncode}; {said} holds what it said")
    answer: dict[str, Any] = json.loads((folder / stock.ANSWER).read_text())
    return answer


def featurize(work: Path, data: Path | None) -> None:
    """Features of what was tuned here, and of the logs of a data set; only logs that are new are read."""
    logs = [folder / "metaschedule" for folder in sorted(work.glob("*/logs-auto"))]
    logs += [data / "metaschedule"] if data is not None else []
    known = [folder for folder in logs if folder.exists()]
    if not known:
        sys.exit(f"no logs in {work}. Fix: the step tune, or --data DATASETS")
    run("lorien", "ingest", *known, "--dialect", "metaschedule", "--logs", work / "logs")
    run("lorien", "featurize", work / "logs", "-o", work / "features")


def prepare(network: Network, again: bool) -> None:
    """Train a model without the network, and without the workloads that others share with it."""
    read = sorted({network_of(log) for log in (network.work / "logs").glob("metaschedule/*/*")})

    def work() -> dict[str, Any]:
        shutil.rmtree(network.models, ignore_errors=True)
        held_out = ("--holdout-network", network.name) if network.name in read else ()
        done = run("lorien-train", network.work / "features", "-o", network.models, *held_out)
        return {"seconds": done.seconds}

    once(network, "prepare", {"networks": "+".join(read)}, again, work)


def network_of(log: Path) -> str:
    """The network of a stored log, whose folder is named after it."""
    return log.name.rpartition("-")[0]


def build(network: Network, name: str, layout: str, *options: str) -> Variant:
    """Build a variant with Lorien. Outputs are compared later, with ONNX Runtime's."""
    folder = network.folder / f"built-{name}"
    done = run(*network.lorien("build", layout), *options, "--no-check", "-o", folder)
    sources = {source: count for source, count in done.value["sources"].items() if count}
    workloads = len(done.value["workloads"])
    took = {"build_s": done.seconds, "seconds": done.value["seconds"], "workloads": workloads, "sources": sources}
    return Variant(name, folder / "library.so", took)


def variants(network: Network, models: str | None, budgets_s: list[float]) -> list[Variant]:
    """Everything that can be built of a network with what was tuned and trained; ONNX Runtime's first."""
    found = [Variant(REFERENCE, network.files.onnx)]
    for layout, name in (("auto", "tuned"), ("plain", "tuned-plain")):
        if (answer := network.answer(f"tune-{layout}")).exists():
            variant = build(network, name, layout, "--db", network.database(layout), "--budget", "0")
            variant.about["tuning"] = json.loads(answer.read_text())
            found.append(variant)
    for name in (stock_name(prepack) for prepack in (False, True)):
        if (answer := network.answer(name)).exists():
            tuning = {"tuning": json.loads(answer.read_text())}
            found.append(Variant(name, network.folder / name / stock.LIBRARY, tuning))
    if models is None and network.answer("prepare").exists():
        models = str(network.models)
    for budget_s in budgets_s if models is not None else []:
        name = f"budget-{budget_s:g}"
        database = network.folder / f"{name}.db"
        database.unlink(missing_ok=True)
        stores = ("--models", str(models), "--db", f"sqlite:///{database}")
        variant = build(network, name, "auto", *stores, "--budget", f"{budget_s:g}")
        warm = build(network, name, "auto", *stores, "--budget", "0")
        found.append(Variant(name, warm.file, {**variant.about, "again_s": warm.about["build_s"]}))
    found.append(build(network, "default", "auto", "--budget", "0"))
    naive = network.folder / "naive"
    shutil.rmtree(naive, ignore_errors=True)
    found.append(Variant("naive", naive / stock.LIBRARY, {"build_s": run_stock(network, naive, 0)["seconds"]}))
    return found


class Turns:
    """Times variants of a network in processes of their own, and watches what else uses the cores meanwhile."""

    def __init__(self, network: Network, seconds: float) -> None:
        import onnx

        self._folder = network.folder
        self._inputs = network.folder / "inputs.npz"
        self._seconds = seconds
        self.threads = available_cores()
        np.savez(self._inputs, *networks.random_inputs(onnx.load(str(network.files.onnx))).values())
        # Turns are over when they are counted: their processor time is in this process's.
        self.watch = Watch(resolve_target("native"), list)

    def take(self, variant: Variant) -> None:
        """One turn of a variant."""
        command = [sys.executable, str(HERE / "inference.py"), str(variant.file), "--inputs", str(self._inputs)]
        command += ["--seconds", str(self._seconds), "--threads", str(self.threads)]
        command += [] if variant.rounds else ["--outputs", str(self._outputs(variant))]
        self.watch.begin()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} left with {done.returncode}")
        disturbed, others_cores = self.watch.ran()
        variant.rounds.append({**json.loads(done.stdout), "disturbed": disturbed, "others_cores": others_cores})

    def compare(self, variant: Variant, reference: Variant) -> float:
        """Largest difference of an output from the reference's, relative to the reference's largest value."""
        with np.load(self._outputs(variant)) as found, np.load(self._outputs(reference)) as expected:
            if [found[name].shape for name in found.files] != [expected[name].shape for name in expected.files]:
                return float("inf")
            errors = [np.abs(found[n] - expected[n]).max() / np.abs(expected[n]).max() for n in found.files]
        return max(float("inf") if np.isnan(error) else float(error) for error in errors)

    def _outputs(self, variant: Variant) -> Path:
        return self._folder / f"outputs-{variant.name.replace(' ', '-')}.npz"


def measure(network: Network, arguments: argparse.Namespace) -> None:
    """Build all variants of a network, time them in turns, and keep the results."""
    turns = Turns(network, arguments.seconds)
    # Before the builds, which are work of ours.
    before = about(PACKAGES)
    require_idle(turns.watch, arguments.busy)
    found = variants(network, arguments.models, arguments.budgets)
    with turns.watch.measuring() as contention:
        for number in range(arguments.rounds):
            # Another one begins each round: none is always the first on a cool processor.
            for variant in found[number % len(found) :] + found[: number % len(found)]:
                turns.take(variant)
            print(f"{network.name}: round {number + 1} of {arguments.rounds}", flush=True)
    reference, *others = found
    for variant in others:
        variant.error = turns.compare(variant, reference)
    results = {variant.name: variant.result(reference.latency_s) for variant in found}
    settings = {"threads": turns.threads, "turn_s": arguments.seconds, "tolerance": TOLERANCE}
    value = {**before, **settings, **contention.to_json(), "variants": results}
    write_result("deliver", {network.name: value}, PACKAGES, keep=True)
    print_network(network.name, value)


def require_idle(watch: Watch, busy: bool) -> None:
    """Leave when others use the cores, unless that was allowed."""
    watch.begin()
    time.sleep(IDLE_S)
    disturbed, cores = watch.ran()
    if disturbed and not busy:
        used = f"other processes use {cores:.1f} cores" if cores is not None else "other processes measure"
        sys.exit(f"the machine is not idle: {used} (under {BUSY_CORES:g} is idle). Fix: end them, or give --busy")


def print_network(name: str, value: dict[str, Any]) -> None:
    """One network's table."""
    rows = []
    for variant, one in value["variants"].items():
        speed = None if variant == REFERENCE else one["speed"] if one["speed"] is not None else "wrong"
        error = None if one["error"] is None else f"{one['error']:.1e}"
        sources = ", ".join(f"{count} {source}" for source, count in one.get("sources", {}).items())
        trials = one.get("tuning", {}).get("trials")
        lower_s = one.get("seconds", {}).get("lower")
        rows.append(
            [variant, one["latency_s"] * 1e3, speed, error, trials, one.get("build_s"), lower_s, sources or None]
        )
    columns = [name, "ms", "speed", "error", "trials", "build s", "lower s", "schedules"]
    disturbance = value["disturbance"] or "nothing disturbed"
    print(f"{markdown(columns, rows)}\n{value['date']}, {value['machine']}; {disturbance}\n", flush=True)


def report() -> None:
    """Tables of all that was measured on this machine, and means over the networks."""
    path = result_path("deliver")
    if not path.exists():
        sys.exit(f"{path} is not there. Fix: python benchmarks/deliver.py measure --work WORK")
    results = json.loads(path.read_text())["results"]
    speeds: dict[str, dict[str, float]] = {}
    for name in sorted(results, key=networks.NETWORKS.index):
        print_network(name, results[name])
        for variant, one in results[name]["variants"].items():
            if variant != REFERENCE and one["speed"] is not None:
                speeds.setdefault(variant, {})[name] = one["speed"]
    rows = []
    for variant, of in speeds.items():
        slowest = min(of, key=lambda name: of[name])
        rows.append([variant, len(of), statistics.geometric_mean(of.values()), of[slowest], slowest])
    print(markdown(["variant", "networks", f"speed of {REFERENCE}, geometric mean", "lowest", "of"], rows))


def main() -> None:
    """One step, of each network asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("models", "tune", "stock", "prepare", "measure", "report"))
    parser.add_argument("--work", type=Path, help="folder of all files, for every step but report")
    parser.add_argument("--network", nargs="+", choices=networks.NETWORKS, default=networks.NETWORKS)
    parser.add_argument("--again", action="store_true", help="do steps that were done")
    parser.add_argument("--trials", type=int, default=64, help="for each workload, of tune and stock")
    parser.add_argument("--layouts", nargs="+", choices=("auto", "plain"), default=("auto", "plain"), help="of tune")
    parser.add_argument("--data", type=Path, help="data sets whose logs prepare reads as well")
    parser.add_argument("--models", help="model store for builds with a budget; without, what prepare left")
    parser.add_argument("--budgets", type=float, nargs="+", default=[60.0], help="seconds of those builds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn, at least")
    parser.add_argument("--busy", action="store_true", help="measure beside other work")
    arguments = parser.parse_args()
    if arguments.step == "report":
        report()
        return
    if arguments.work is None:
        parser.error(f"{arguments.step} needs --work")
    work = arguments.work.resolve()
    if arguments.step == "prepare":
        featurize(work, arguments.data)
    for name in arguments.network:
        network = Network(work, name)
        if arguments.step == "models":
            models(network, arguments.again)
            continue
        if not network.answer("models").exists():
            parser.error(f"{name} has no model files yet. Fix: the step models")
        if arguments.step == "prepare":
            prepare(network, arguments.again)
        elif arguments.step == "tune":
            for layout in arguments.layouts:
                if layout == "auto" or name in PLAIN_TOO:
                    tune(network, layout, arguments.trials, arguments.again)
        elif arguments.step == "stock":
            for prepack in (False, True) if name in STOCK else ():
                tune_stock(network, prepack, arguments.trials, arguments.again)
        else:
            measure(network, arguments)


if __name__ == "__main__":
    main()
