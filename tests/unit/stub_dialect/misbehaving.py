"""A live dialect whose candidates do what their schedule says: ``{"build": "hang"}``, ``{"run": "segfault"}``..."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from lorien.dialects.base import LiveDialect
from lorien.errors import BadInput
from lorien.records import Candidate


class MisbehavingDialect(LiveDialect):
    name = "misbehaving"
    shard_bytes = 1

    def warm_up(self, target):
        if target.kind == "cuda":
            raise RuntimeError("no such device")

    def search(self, workload, target, count, score, *, seed=0, budget_s=None):
        misbehave(workload.name)
        return [Candidate({"number": number}, 1.0) for number in range(count)]

    def build(self, workload, candidate, target, out):
        schedule = candidate.schedule or {}
        misbehave(schedule.get("build"))
        if schedule.get("build") != "write nothing":
            out.write_text(repr(schedule.get("run", "fine")) + "\n" + str(os.getpid()))

    def run(self, workload, library, target, *, repeat, min_repeat_s):
        what = eval(library.read_text().splitlines()[0])
        if isinstance(what, dict):
            what = lie(what, full=min_repeat_s >= 0.03)
        if isinstance(what, float):
            return [what] * repeat
        misbehave(what)
        return {"nan": [float("nan")], "zero": [0.0], "nothing": [], "slow": [9.0] * repeat}.get(what, [0.06] * repeat)

    def outputs(self, workload, library, target):
        what = eval(library.read_text().splitlines()[0])
        if workload.name == "no reference":
            raise RuntimeError("cannot run the default")
        return [np.arange(4, dtype="int8"), np.full(4, 2.0 if what == "wrong" else 1.0, "float32")]


class ForkedDialect(MisbehavingDialect):
    forkable = True


def lie(what, full):
    """``{"at first": ..., "then": ...}``: another thing once it was measured in full, in whichever process."""
    told = Path(os.environ["MISBEHAVING_FILE"] + what["name"])
    if told.exists():
        return what["then"]
    if full:
        told.touch()
    return what["at first"]


def misbehave(how):
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "exit":
        sys.exit(3)
    elif how == "killed once" and not Path(os.environ["MISBEHAVING_FILE"]).exists():
        Path(os.environ["MISBEHAVING_FILE"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "abort on bad_alloc":
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os.abort()
    elif how == "raise":
        raise RuntimeError("the compiler says no")
    elif how == "unfit":
        raise BadInput("the schedule does not fit")
    elif how == "hang":
        while True:
            signal.pause()
    elif how == "hang in a compiler":
        compiler = subprocess.Popen(["sleep", "1000"])
        Path(os.environ["MISBEHAVING_FILE"]).write_text(str(compiler.pid))
        compiler.wait()
    elif how == "allocate":
        hoard = []
        while True:
            hoard.append(bytearray(64 << 20))
    elif how == "print":
        print("noise")
        os.write(1, b"more noise\n")
