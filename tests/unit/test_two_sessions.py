"""Two processes and one new session: one has it, the other is told so, and no acknowledged trial is lost."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from lorien.errors import BadInput
from lorien.files import TEMPORARY_PREFIX
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.target import Target
from lorien.tune.session import Session, open_session, session_name

STUB = Path(__file__).parent / "stub_dialect"
TARGET = Target.parse("llvm -num-cores=2")
WORKLOADS = [Workload("recording", "w", [0], networks=("net",))]
ROUNDS, KILLS, TRIALS = 8, 8, 3
CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _stub_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(STUB)


def acknowledge(root: Path, name: int, together: Barrier, wire: Connection, resume: bool) -> None:
    """Open the session with the others at once, and say what was acknowledged, or why nothing could be."""
    together.wait()
    try:
        with open_session(root, WORKLOADS, TARGET, resume=resume) as session:
            for number in range(TRIALS):
                session.append(0, Candidate([name, number]), Measurement(Outcome.OK, (1.0,)))
            wire.send(TRIALS)
            together.wait()  # nobody closes it before all have tried
    except BadInput as error:
        wire.send(str(error))
        together.wait()


@pytest.mark.parametrize(("resume", "empty"), [(False, False), (True, False), (True, True)])
def test_one_of_two_has_a_new_session(tmp_path: Path, resume: bool, empty: bool) -> None:
    for number in range(ROUNDS):
        root = tmp_path / str(number)
        folder = root / session_name(WORKLOADS, TARGET)
        if empty:
            folder.mkdir(parents=True)
        together = CONTEXT.Barrier(2)
        wires, processes = [], []
        for name in range(2):
            mine, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=acknowledge, args=(root, name, together, theirs, resume))
            process.start()
            theirs.close()
            wires.append(mine)
            processes.append(process)
        said = [wire.recv() for wire in wires]
        for process in processes:
            process.join()
        assert sorted(isinstance(answer, str) for answer in said) == [False, True], said
        (refusal,) = (answer for answer in said if isinstance(answer, str))
        assert "is being written by another process. Fix: wait for it, or stop it" in refusal
        with Session(folder) as session:
            assert session.records == TRIALS
        assert [path.name for path in root.iterdir()] == [folder.name]


def begin(root: Path, wire: Connection) -> None:
    with open_session(root, WORKLOADS, TARGET, resume=True) as session:
        for number in range(1000):
            session.append(0, Candidate([os.getpid(), number]), Measurement(Outcome.OK, (1.0,)))
            wire.send(number + 1)


def test_whoever_is_killed_leaves_what_was_acknowledged_and_no_half_session(tmp_path: Path) -> None:
    chance = random.Random(0)
    for number in range(KILLS):
        root = tmp_path / str(number)
        mine, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=begin, args=(root, theirs))
        process.start()
        theirs.close()
        mine.poll(chance.random() * 0.02)  # from before the folder is there to some trials later
        os.kill(process.pid or 0, signal.SIGKILL)
        acknowledged = 0
        with suppress(EOFError):
            while True:
                acknowledged = mine.recv()
        process.join()
        with open_session(root, WORKLOADS, TARGET, resume=True) as session:
            assert acknowledged <= session.records <= acknowledged + 1
            session.append(0, Candidate("next"), Measurement(Outcome.OK, (1.0,)))
        # This process looked for leftovers here before; the next one is another.
        assert all(
            path.name == session.folder.name or path.name.startswith(TEMPORARY_PREFIX) for path in root.iterdir()
        )


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / session_name(WORKLOADS, TARGET)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds no tuning session"):
        open_session(tmp_path, WORKLOADS, TARGET, resume=True)
    assert (folder / "notes.txt").read_text() == "mine"
