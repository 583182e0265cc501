"""Tunes a stub workload, with a line ``ack <workload> <outcome> <latencies>`` after each trial. Made to be killed."""

import itertools
import random
import sys
from pathlib import Path

from lorien.records import Candidate, Workload
from lorien.target import Target
from lorien.tune.loop import TuneConfig, tune
from lorien.tune.measure import MeasureConfig, Measurer
from lorien.tune.session import open_session

TARGET = Target.parse("llvm -num-cores=2")
WORKLOADS = [Workload("recording", f"w{i}", [i]) for i in range(3)]


class Endless:
    """Distinct candidates of all kinds, other ones in every process."""

    def __init__(self):
        self._numbers = itertools.count(random.randrange(1 << 40))

    def prepare(self, workload, count):
        pass

    def ask(self, workload, count):
        kinds = [{"run": 0.5}, {"run": 0.25}, {"build": "raise"}, {"run": "segfault"}, {"build": "segfault"}]
        return [Candidate({"n": n, **kinds[n % len(kinds)]}) for n in itertools.islice(self._numbers, count)]

    def tell(self, workload, candidates, measurements):
        pass


def main(root: str, trials: str) -> None:
    with open_session(Path(root), WORKLOADS, TARGET, resume=True) as session:
        print("resumed", session.records, flush=True)

        def watch(index, measurement):
            print("ack", index, measurement.outcome.value, *measurement.latencies_s, flush=True)

        with Measurer("recording", TARGET, MeasureConfig(builders=1)) as measurer:
            tune(session, Endless(), measurer, TuneConfig(int(trials), batch=6), watch=watch)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
