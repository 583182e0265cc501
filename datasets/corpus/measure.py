"""Measure the corpus on this machine, for as long as there is time; what was begun before goes on.

    python datasets/corpus/measure.py FOLDER --hours 8 [--known LOGS ...] [--trials 32]

``FOLDER`` has what ``recipe.py`` wrote for this machine's target. Workloads come in rounds: those that ``choose.py``
puts first after all that were measured, here or in the logs of ``--known``. Of each, the default schedule and others
of its kind are measured first, then random samples; the rest of the trials are guided by a model of all the logs,
which is trained again as they grow. It wants an idle machine: what was measured beside other work says so.

``FOLDER/<target>/logs`` is a log store, to train on or to ship with ``make_sample.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from choose import choose

from lorien.cli.workloads import read_workloads, write_workloads
from lorien.dialects import open_dialect, resolve_target
from lorien.dialects.base import ReadReport
from lorien.dialects.metaschedule.cpu_schedule import FIRST_DEFAULTS
from lorien.errors import BadInput
from lorien.logs import open_logs
from lorien.records import Workload
from lorien.target import Target

DIALECT = "metaschedule"
ROUND = 24
"""Workloads between two choices: some minutes on two cores."""
RANDOM_SHARE = 1 / 3
GROWTH = 1.25
"""How many times the workloads of the last training make another worth its time."""
FIRST_MODEL = 2 * ROUND
"""Workloads that a first model is trained on."""


class Corpus:
    """What there is to measure for a target, and what was measured."""

    def __init__(self, folder: Path, target: Target, trials: int) -> None:
        self.folder, self.target, self.trials = folder, target, trials
        self.logs, self.features, self.models = folder / "logs", folder / "features", folder / "models"
        self.rounds = folder / "rounds"
        self.rounds.mkdir(exist_ok=True)

    def measured(self) -> dict[str, Workload]:
        """Workloads of the log store, by key."""
        if not self.logs.exists():
            return {}
        store, dialect = open_logs(str(self.logs)), open_dialect(DIALECT)
        found: dict[str, Workload] = {}
        for log in store.list(DIALECT, self.target):
            with store.local(log) as path:
                records = dialect.read(path, log.info, ReadReport())
                found |= {record.workload.key: record.workload for record in records}
        return found

    def ingest(self, logs: Sequence[Path]) -> None:
        """Take in what other machines of this kind measured."""
        if logs:
            run("lorien", "ingest", *logs, "--dialect", DIALECT, "--logs", self.logs)

    def train(self, workloads: int) -> None:
        """Train a model of all the logs, where they grew enough since the last one."""
        mark = self.folder / "trained"
        last = int(mark.read_text()) if mark.exists() else 0
        if workloads >= max(FIRST_MODEL, GROWTH * last):
            run("lorien", "featurize", self.logs, "-o", self.features)
            run("lorien-train", self.features, "-o", self.models, "--target", self.target.key)
            mark.write_text(f"{workloads}\n")

    def next_round(self) -> Path | None:
        """File of the round to tune, begun before or new; None when all was measured."""
        last = max(self.rounds.glob("*.jsonl"), default=None)
        if last is not None and not last.with_suffix(".done").exists():
            return last
        known = self.measured()
        self.train(len(known))
        chosen = choose(read_workloads(self.folder / "workloads.jsonl"), list(known.values()), ROUND)
        if not chosen:
            return None
        number = 1 if last is None else int(last.stem) + 1
        file = self.rounds / f"{number:04}.jsonl"
        write_workloads(file, chosen)
        print(f"round {number}: {len(chosen)} workloads after {len(known)}", flush=True)
        return file

    def tune(self, file: Path) -> None:
        """Measure a round, or the rest of it."""
        count = len(read_workloads(file))
        sampled = min(self.trials, FIRST_DEFAULTS + round(RANDOM_SHARE * self.trials))
        guide = ["--model", self.models] if self.models.exists() else []
        for each, options in ((sampled, ["--strategy", "replay"]), (self.trials, guide)):
            limits = ("--trials", str(count * each), "--trials-per-workload", str(each), "--scheduler", "round-robin")
            run("lorien", "tune", file, *limits, *options, "--logs", self.logs, "--resume")
        file.with_suffix(".done").touch()


def run(*command: str | Path) -> None:
    """Run a command of Lorien. Its progress is seen, what it prints at the end is not."""
    program, *arguments = map(str, command)
    file = Path(sys.executable).with_name(program)
    done = subprocess.run([str(file), *arguments], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = f"{program} {arguments[0]} left with {done.returncode}"
        sys.exit(f"{said}. Fix: mend what it says above, and run this again")


def main() -> None:
    """Measure rounds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, required=True, help="no round begins after so many")
    parser.add_argument("--known", type=Path, nargs="+", default=[], help="logs of this target, of other machines")
    parser.add_argument("--trials", type=int, default=32, help="of each workload")
    arguments = parser.parse_args()
    end_s = time.monotonic() + arguments.hours * 3600
    try:
        target = resolve_target("native", DIALECT)
        folder = arguments.folder / target.key
        read_workloads(folder / "workloads.jsonl")
    except BadInput as error:
        sys.exit(f"{error}; for this machine, python datasets/corpus/recipe.py {arguments.folder}")
    corpus = Corpus(folder, target, arguments.trials)
    corpus.ingest(arguments.known)
    with contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < end_s and (following := corpus.next_round()):
            corpus.tune(following)
    print(f"{len(corpus.measured())} workloads in {corpus.logs}", flush=True)


if __name__ == "__main__":
    main()
