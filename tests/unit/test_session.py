"""The session log: what was acknowledged is there after anything, and nothing else is."""

import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorien.errors import BadInput, StoreUnavailable
from lorien.logs.ingest import ingest
from lorien.logs.local import LocalLogStore
from lorien.records import Candidate, Measurement, Outcome, Workload
from lorien.target import Target
from lorien.tune.session import DETAILS, KEPT, Session, open_session

STUB = Path(__file__).parent / "stub_dialect"
TARGET = Target.parse("llvm -mcpu=znver4 -num-cores=2")
WORKLOADS = [Workload("recording", f"w{i}", [i], networks=("net",)) for i in range(3)]


@pytest.fixture(autouse=True, scope="module")
def _stub_dialect():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUB)
        yield


def ok(latency_s: float) -> Measurement:
    return Measurement(Outcome.OK, (latency_s,), timestamp_s=1.0)


def measurement(number: int) -> Measurement:
    """Every kind that a session meets."""
    slow = Measurement(Outcome.OK, (0.5,), "stopped at the first look", 1.0)
    return [ok(1.0 / (number + 1)), Measurement(Outcome.CRASH, (), "SIGSEGV", 2.0), slow][number % 3]


def contents(session: Session) -> list[tuple[str, list[float], list[str]]]:
    return [(own.workload.name, own.latencies_s, sorted(own.keys)) for own in session.trials]


crashes = st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans())


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.one_of(st.integers(1, 4), crashes), max_size=12))
def test_resume_keeps_exactly_what_was_acknowledged(tmp_path_factory, steps):
    """Appends, and crashes in the middle of one at any byte of either file; a lost page reads as zeros."""
    folder = tmp_path_factory.mktemp("sessions") / "s"
    session = Session.create(folder, WORKLOADS, TARGET)
    number = 0
    for step in steps:
        if isinstance(step, int):
            for _ in range(step):
                session.append(number % 3, Candidate({"n": number}), measurement(number))
                number += 1
            continue
        acknowledged, outcomes = contents(session), session.outcomes
        session.close()
        line = json.dumps([number % 3, {"n": number}, [0.25] * 3]).encode() + b"\n"
        detail = json.dumps({"record": number, **Measurement(Outcome.BUILD_ERROR).to_json()}).encode() + b"\n"
        for name, text, share in ((DETAILS, detail, step[0]), ("records.jsonl", line, step[1])):
            torn = text[: int(share * (len(text) - 1))]
            with (folder / name).open("ab") as file:
                file.write(b"\0" * len(torn) + b"\n" if step[2] and torn else torn)
        session = Session(folder)
        assert (contents(session), session.outcomes) == (acknowledged, outcomes)
    acknowledged, outcomes = contents(session), session.outcomes
    session.close()
    with Session(folder) as session:
        assert (contents(session), session.outcomes) == (acknowledged, outcomes)
        assert session.records == number


def test_a_full_disk_loses_nothing_and_the_session_goes_on(tmp_path):
    with Session.create(tmp_path / "s", WORKLOADS, TARGET) as session:
        session.append(0, Candidate(1), ok(1.0))
        records = tmp_path / "s" / "records.jsonl"
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (records.stat().st_size + 5, hard))
        try:
            with pytest.raises(StoreUnavailable, match=r"the 1 trials before are safe\. Fix: free space"):
                session.append(0, Candidate(2), ok(2.0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert session.records == 1
        session.append(0, Candidate(3), ok(3.0))
        assert len(records.read_bytes().splitlines()) == 2
    with Session(tmp_path / "s") as session:
        assert session.trials[0].latencies_s == [1.0, 3.0]


def test_state_is_read_from_the_log(tmp_path):
    with Session.create(tmp_path / "s", WORKLOADS, TARGET) as session:
        for number in range(2 * KEPT):
            session.append(0, Candidate(number), ok(1.0 + number % KEPT + number / 1000))
        session.append(1, Candidate("x"), Measurement(Outcome.RUN_TIMEOUT, detail="killed after 30 s"))
    with Session(tmp_path / "s") as session:
        first, second, third = session.trials
        assert first.best_s == 1.0
        assert [candidate.schedule for candidate, _ in first.top()[:3]] == [0, KEPT, 1]
        assert len(first.top()) == KEPT
        assert session.outcomes == {"ok": 2 * KEPT, "run_timeout": 1}
        assert (len(second.latencies_s), second.top()) == (1, [])
        assert third.latencies_s == []


def test_one_process_at_a_time(tmp_path):
    with Session.create(tmp_path / "s", WORKLOADS, TARGET), pytest.raises(BadInput, match="another process"):
        Session(tmp_path / "s")
    Session(tmp_path / "s").close()


def test_an_old_session_is_not_overwritten_without_resume(tmp_path):
    with open_session(tmp_path, WORKLOADS, TARGET, resume=False) as session:
        assert session.folder.name.startswith("net-")
    with open_session(tmp_path, [*reversed(WORKLOADS), *WORKLOADS], TARGET, resume=False) as session:
        session.append(0, Candidate(1), ok(1.0))  # the same session: nothing had been measured in it
    with pytest.raises(BadInput, match=r"holds 1 trials of these workloads\. Fix: --resume"):
        open_session(tmp_path, WORKLOADS, TARGET, resume=False)
    with open_session(tmp_path, WORKLOADS, TARGET, resume=True) as session:
        assert session.records == 1
    with open_session(tmp_path, WORKLOADS[:2], TARGET, resume=True) as other:
        assert other.records == 0


def test_sessions_that_cannot_go_on_say_why(tmp_path):
    folder = tmp_path / "s"
    with Session.create(folder, WORKLOADS, TARGET) as session:
        session.append(0, Candidate(1), ok(1.0))
    sidecar, records = folder / "lorien.json", folder / "records.jsonl"
    good = sidecar.read_text()
    sidecar.write_text(good.replace("recording 1", "recording 0"))
    with pytest.raises(BadInput, match="was tuned with recording 0"):
        Session(folder)
    sidecar.write_text("{}")
    with pytest.raises(BadInput, match="no tuning session"):
        Session(folder)
    sidecar.write_text(good)
    records.write_bytes(b"garbage\n" + records.read_bytes())
    with pytest.raises(BadInput, match="damaged before its end"):
        Session(folder)
    records.unlink()
    with pytest.raises(BadInput, match=r"records\.jsonl is missing"):
        Session(folder)
    with pytest.raises(BadInput, match="one dialect"):
        Session.create(tmp_path / "mixed", [WORKLOADS[0], Workload("autotvm", "d", ["d"])], TARGET)


def test_a_session_that_grew_replaces_its_log_in_the_store(tmp_path):
    store = LocalLogStore(str(tmp_path / "logs"))
    with open_session(tmp_path / "logs" / "sessions", WORKLOADS, TARGET, resume=False) as session:
        for number in range(4):
            session.append(number % 3, Candidate(number), measurement(number))
            report = ingest([session.folder], store, dialect=session.dialect)
            assert (report.records, report.new) == (number + 1, 1)
    (log,) = store.list()
    assert (log.records, log.failed, log.network, log.target.key) == (4, 1, "net", TARGET.key)
