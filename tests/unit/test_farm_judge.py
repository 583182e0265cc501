"""Who is blamed for what fails on a farm."""

import pytest

from lorien.dialects.metaschedule import MetaScheduleDialect
from lorien.dialects.remote import Tracker
from lorien.errors import BadInput, DeviceUnavailable, UnsupportedOperation
from lorien.records import Measurement, Outcome
from lorien.tune.farm import MAX_BROKEN, QUARANTINE_FAILURES, Ending, Farm, OnceMore

OK = Measurement(Outcome.OK, (1e-3,))
TIMEOUT = Measurement(Outcome.RUN_TIMEOUT)
WRONG = Measurement(Outcome.RUN_ERROR, detail="cannot load")
TRACKER = Tracker("127.0.0.1", 9190, "pi4")


@pytest.fixture
def farm(monkeypatch):
    monkeypatch.setattr(MetaScheduleDialect, "devices", lambda self, tracker: ["a:1", "b:1"])
    return Farm(TRACKER, "metaschedule")


def again(judge, index, result, device, **how):
    return judge.again(index, result, Ending(device=device, **how))


def test_what_fails_on_one_device_and_not_on_another_is_the_devices_fault(farm):
    for number in range(QUARANTINE_FAILURES):
        judge = farm.judge()
        assert farm.banned == set(), number
        assert again(judge, 0, WRONG, "a:1")
        assert judge.terms(0)["avoid"] == ["a:1"]
        assert not again(judge, 0, OK, "b:1")
    assert farm.judge().terms(1) == {
        "tracker": {"host": "127.0.0.1", "port": 9190, "key": "pi4", "trusted": False},
        "avoid": [],
        "banned": ["a:1"],
    }


def test_what_fails_on_two_devices_is_the_candidates_fault(farm):
    for _ in range(2 * QUARANTINE_FAILURES):
        judge = farm.judge()
        assert again(judge, 0, WRONG, "a:1")
        assert not again(judge, 0, WRONG, "b:1")
    assert farm.banned == set()


def test_only_failures_in_a_row_count(farm):
    for _ in range(2 * QUARANTINE_FAILURES):
        judge = farm.judge()
        assert again(judge, 0, WRONG, "a:1")
        assert not again(judge, 0, OK, "b:1")
        assert not again(judge, 1, None, "a:1")  # as the default schedule's outputs, which are no measurement
    assert farm.banned == set()


def test_a_device_that_gives_no_session_is_not_held_against_the_candidate(farm):
    judge = farm.judge()
    for _ in range(QUARANTINE_FAILURES):
        assert again(judge, 0, WRONG, "a:1", lost="hung up")
        assert judge.terms(0)["avoid"] == []
    assert farm.banned == {"a:1"}
    assert not again(judge, 0, OK, "b:1")


def test_devices_that_died_or_froze_are_no_witnesses(farm):
    farm.devices = ["a:1", "b:1", "c:1"]
    judge = farm.judge()
    assert again(judge, 0, WRONG, "a:1", broke=True)  # killed
    assert again(judge, 0, TIMEOUT, "b:1", broke=True)  # frozen
    assert judge.terms(0)["avoid"] == ["a:1", "b:1"]
    assert not again(judge, 0, OK, "c:1")
    assert farm.failures == {"a:1": 1, "b:1": 1, "c:1": 0}


def test_a_crash_counts_once_the_device_gives_another_session(farm):
    judge = farm.judge()
    assert again(judge, 0, WRONG, "a:1", broke=True)
    assert not again(judge, 1, OK, "a:1")  # it lives: the session was ended by the candidate
    assert again(judge, 0, WRONG, "b:1", broke=True)
    assert not again(judge, 2, OK, "b:1")
    assert judge.terms(0)["avoid"] == ["b:1"]  # there is no third
    assert not again(judge, 0, WRONG, "a:1", broke=True)
    assert farm.failures == {"a:1": 0, "b:1": 0}


def test_one_healthy_device_is_not_enough_when_the_other_died(farm):
    judge = farm.judge()
    assert again(judge, 0, WRONG, "a:1", broke=True)
    assert again(judge, 0, WRONG, "b:1")
    assert not again(judge, 0, OK, "b:1")
    assert farm.failures == {"a:1": 1, "b:1": 0}


def test_what_ends_one_device_after_the_other_is_not_given_to_all(farm):
    farm.devices = [f"{name}:1" for name in "abcde"]
    judge = farm.judge()
    tries = [again(judge, 0, WRONG, device, broke=True) for device in farm.devices[:MAX_BROKEN]]
    assert tries == [True] * (MAX_BROKEN - 1) + [False]
    assert farm.failures == {}


def test_without_any_device_it_ends(farm, monkeypatch):
    judge = farm.judge()
    assert again(judge, 0, TIMEOUT, "")
    monkeypatch.setattr(judge, "wait_s", 0.0)
    with pytest.raises(DeviceUnavailable, match="query_rpc_tracker"):
        again(judge, 0, TIMEOUT, "")
    with pytest.raises(DeviceUnavailable, match="the tracker said"):
        again(judge, 0, Measurement(Outcome.UNKNOWN_ERROR, detail="the tracker said"), "")


def test_on_this_machine_a_child_that_died_is_given_one_more_chance():
    judge = OnceMore()
    assert judge.again(0, WRONG, Ending(died=True))
    assert not judge.again(0, WRONG, Ending(died=True))
    assert not judge.again(1, WRONG, Ending())


@pytest.mark.parametrize("url", ["", "rpc://", "rpc://host/key", "rpc://127.0.0.1:9190", "http://127.0.0.1:9190/key"])
def test_a_runner_that_is_none(url):
    with pytest.raises(BadInput, match="rpc://TRACKER:PORT/KEY"):
        Tracker.parse(url)


def test_other_machines_are_used_only_when_told():
    url = "rpc://192.0.2.1:9190/pi4"
    with pytest.raises(BadInput, match="--trust-network"):
        Tracker.parse(url)
    assert Tracker.parse(url, trusted=True) == Tracker("192.0.2.1", 9190, "pi4", trusted=True)
    assert Tracker.parse("rpc://localhost:9190/pi4").key == "pi4"
    with pytest.raises(BadInput):
        TRACKER.check("192.0.2.7")  # a device that the tracker on this machine names


def test_only_a_dialect_that_can_runs_elsewhere(monkeypatch):
    class Local:
        name = "local"

    monkeypatch.setattr("lorien.tune.farm.open_live_dialect", lambda name: Local())
    with pytest.raises(UnsupportedOperation, match="--runner"):
        Farm(TRACKER, "local")
