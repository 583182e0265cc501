"""What can go wrong between Lorien and AWS: told with its fix, nothing lost, nothing half-written."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import servers

from lorien.database import open_database
from lorien.database.base import ScheduleDatabase
from lorien.dialects import open_dialect
from lorien.errors import BadInput, DatabaseUnavailable, LorienError, SchemaMismatch, StoreUnavailable
from lorien.logs import open_logs
from lorien.logs.ingest import ingest
from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target

TARGET = Target.parse("cuda -arch=sm_86")


def made(number: int, latency_s: float = 1.0) -> TuningRecord:
    workload = Workload("autotvm", f"dense{number}", ["dense", number])
    return TuningRecord(workload, TARGET, Candidate([number]), Measurement(Outcome.OK, (latency_s,)), "tvm 0.10.0")


def kept(database: ScheduleDatabase, number: int) -> list[float | None]:
    return [record.measurement.latency_s for record in database.best(TARGET, made(number).workload.key, 99)]


@pytest.fixture
def database(proxy: servers.FaultyProxy) -> Iterator[ScheduleDatabase]:
    url = f"dynamodb://faults-{uuid.uuid4().hex}?endpoint_url={proxy.url}"
    with open_database(url, create=True) as opened:
        yield opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


# DynamoDB.


def test_throttling_is_waited_out(proxy: servers.FaultyProxy, database: ScheduleDatabase) -> None:
    proxy.faults.extend(["ProvisionedThroughputExceededException", "ThrottlingException"])
    assert database.put(made(0))
    proxy.faults.append("ProvisionedThroughputExceededException")
    assert kept(database, 0) == [1.0]


def test_what_was_left_unprocessed_is_asked_again(proxy: servers.FaultyProxy, database: ScheduleDatabase) -> None:
    """Taken for absent, the stored schedule would be lost."""
    database.put(made(0, 1.0))
    proxy.faults.extend([proxy.UNPROCESSED] * 3)
    assert not database.put(made(0, 2.0))
    assert not proxy.faults
    assert kept(database, 0) == [1.0]


def test_an_answer_that_is_lost_counts_once(proxy: servers.FaultyProxy, database: ScheduleDatabase) -> None:
    assert database.put(made(0, 2.0))
    # The read goes well. The write is carried out, and sent again.
    proxy.faults.extend([None, proxy.LOSE_ANSWER])
    assert database.put(made(0, 1.0))
    assert kept(database, 0) == [1.0]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "fix"),
    [
        ("UnrecognizedClientException", "aws configure"),
        ("InvalidSignatureException", "aws configure"),
        ("AccessDeniedException", r"permissions"),
        ("ResourceNotFoundException", "lorien database create"),
        ("InternalServerError", "run again"),
    ],
)
def test_a_read_that_fails_never_leads_to_a_write(
    proxy: servers.FaultyProxy, database: ScheduleDatabase, fault: str, fix: str
) -> None:
    database.put(made(0, 2.0))
    proxy.faults.append(fault)
    with pytest.raises(DatabaseUnavailable, match=f"{fault}.*Fix: .*{fix}"):
        database.put(made(0, 1.0))
    assert not proxy.faults
    assert kept(database, 0) == [2.0]


def test_a_damaged_item_is_left_alone(proxy: servers.FaultyProxy, database: ScheduleDatabase) -> None:
    database.put(made(0, 2.0))
    client = boto3.client("dynamodb", endpoint_url=proxy.url)
    table = database._table  # type: ignore[attr-defined]
    key = {"target_key": {"S": TARGET.key}, "item_key": {"S": f"{made(0).workload.key}#tvm 0.10.0"}}
    client.update_item(
        TableName=table,
        Key=key,
        UpdateExpression="SET records = :cut",
        ExpressionAttributeValues={":cut": {"S": "[{"}},
    )
    before = client.get_item(TableName=table, Key=key)["Item"]
    for attempt in (lambda: database.put(made(0, 1.0)), lambda: kept(database, 0), lambda: list(database.query())):
        with pytest.raises(DatabaseUnavailable, match=r"damaged.*Nothing of it was changed\. Fix"):
            attempt()
    assert client.get_item(TableName=table, Key=key)["Item"] == before
    client.close()


@pytest.mark.usefixtures("impatient")
def test_parts_without_their_item_are_never_seen(proxy: servers.FaultyProxy, database: ScheduleDatabase) -> None:
    """As a writer that dies between the two leaves them."""
    large = [random.Random(number).randbytes(400_000).hex() for number in range(2)]
    first, second = (replace(made(0, 2.0 - number), candidate=Candidate([text])) for number, text in enumerate(large))
    assert database.put(first)
    # Read: the item and its parts. Written: four parts, and then the item, which is lost.
    proxy.faults.extend([None, None, None, None, None, None, proxy.DROP])
    with pytest.raises(DatabaseUnavailable, match="What was put before stays whole"):
        database.put(second)
    assert not proxy.faults
    assert list(database.query()) == [first]
    assert database.put(second)
    assert list(database.query()) == [second, first]


@pytest.mark.usefixtures("impatient")
def test_parts_that_cannot_be_removed_do_no_harm(
    proxy: servers.FaultyProxy, database: ScheduleDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """Credentials that may not delete are enough to write."""
    text = random.Random(0).randbytes(400_000).hex()
    first = replace(made(0, 2.0), candidate=Candidate([text]))
    assert database.put(first)
    # Read: the item and its parts. Written: two parts, the item. Then the old parts are removed.
    proxy.faults.extend([None] * 5 + ["AccessDeniedException"])
    assert database.put(made(0, 1.0))
    assert "parts of an item that was replaced stay" in caplog.text
    assert list(database.query()) == [made(0, 1.0), first]


def test_tables_that_cannot_be_used(aws: Callable[[str], str]) -> None:
    url = f"dynamodb://{{}}?endpoint_url={aws('moto')}"
    with pytest.raises(BadInput, match=r"Fix: lorien database create dynamodb://absent\?"):
        open_database(url.format("absent"))
    client = boto3.client("dynamodb", endpoint_url=aws("moto"))
    client.create_table(
        TableName="foreign",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    for create in (None, True):
        with pytest.raises(BadInput, match="no table of schedules"):
            open_database(url.format("foreign"), create=create)
    open_database(url.format("other"), create=True).close()
    for schema, fix in (("9", "pip install --upgrade"), ("0", "lorien commit --logs"), ("x", "lorien commit --logs")):
        client.update_item(
            TableName="other",
            Key={"target_key": {"S": "lorien"}, "item_key": {"S": "about"}},
            UpdateExpression="SET #schema = :schema",
            ExpressionAttributeNames={"#schema": "schema"},
            ExpressionAttributeValues={":schema": {"S": schema}},
        )
        with pytest.raises(SchemaMismatch, match=rf"schema {schema}.*reads 1.*Fix: {fix}"):
            open_database(url.format("other"))
    client.close()


@pytest.mark.parametrize("text", ["dynamodb://", "dynamodb://t?colour=red", "dynamodb:///t"])
def test_a_url_that_is_none(text: str) -> None:
    with pytest.raises(BadInput, match=r"write dynamodb://NAME"):
        open_database(text)
    with pytest.raises(BadInput, match="begins with http"):
        open_logs("s3://bucket?endpoint_url=localhost:8333")


def test_a_server_killed_in_the_middle_of_commits(aws_credentials: None, tmp_path: Path) -> None:
    server = servers.dynalite(tmp_path)
    acknowledged: list[int] = []
    enough = threading.Event()
    try:
        with open_database(f"dynamodb://best?endpoint_url={server.url}", create=True) as database:

            def commit() -> None:
                for number in range(60):
                    database.put(made(number))
                    acknowledged.append(number)
                    if len(acknowledged) == 20:
                        enough.set()

            writer = threading.Thread(target=commit)
            writer.start()
            assert enough.wait(60)
            server.kill()
            server.start()
            writer.join()
            assert acknowledged == list(range(60))
            assert [kept(database, number) for number in acknowledged] == [[1.0]] * 60
    finally:
        server.kill()


@pytest.fixture
def wire(aws: Callable[[str], str], request: pytest.FixtureRequest) -> Iterator[servers.CuttableWire]:
    cuttable = servers.CuttableWire(aws(request.param))
    yield cuttable
    cuttable.close()


CUT_S = 2.0


@pytest.mark.parametrize("wire", ["dynalite"], indirect=True)
def test_the_network_cut_in_the_middle_of_commits(wire: servers.CuttableWire) -> None:
    """Requests on the wire vanish without an answer. Each is sent again, and counts once."""
    with open_database(f"dynamodb://cut-{uuid.uuid4().hex}?endpoint_url={wire.url}", create=True) as database:
        mending = threading.Timer(CUT_S, wire.mend)
        for number in range(30):
            if number == 10:
                wire.cut()
                mending.start()
            assert database.put(made(number))
        mending.join()
        assert [kept(database, number) for number in range(30)] == [[1.0]] * 30


@pytest.mark.parametrize("wire", ["seaweedfs"], indirect=True)
def test_the_network_cut_in_the_middle_of_uploads(
    wire: servers.CuttableWire,
    s3_folder: Callable[[str], str],
    aws: Callable[[str], str],
    autotvm_log: Callable[..., Path],
    line: Callable[..., str],
) -> None:
    url = s3_folder("seaweedfs")
    through = open_logs(url.replace(aws("seaweedfs"), wire.url))
    logs = [autotvm_log(f"net{size}.log", [line(tile=tile, size=size) for tile in range(1, 20)]) for size in (8, 16)]
    ingest(logs[:1], through, dialect=open_dialect("autotvm"), target=TARGET)
    mending = threading.Timer(CUT_S, wire.mend)
    wire.cut()
    mending.start()
    assert ingest(logs[1:], through, dialect=open_dialect("autotvm"), target=TARGET).new == 19
    mending.join()
    store = open_logs(url)
    contents = []
    for stored in store.list():
        with store.local(stored) as path:
            contents.append(path.read_bytes())
    assert sorted(contents) == sorted(log.read_bytes() for log in logs)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stays_away(aws_credentials: None, tmp_path: Path) -> None:
    server = servers.moto(tmp_path)
    with open_database(f"dynamodb://best?endpoint_url={server.url}", create=True) as database:
        server.kill()
        with pytest.raises(DatabaseUnavailable, match="endpoint can be reached"):
            database.put_many(made(number) for number in range(200))


# Credentials, for both.


@pytest.mark.parametrize("url", ["dynamodb://best?{}", "s3://tests/logs?{}"])
def test_no_credentials(url: str, aws: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    where = url.format(f"endpoint_url={aws('moto')}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    use = (lambda: list(open_logs(where).list())) if where.startswith("s3") else (lambda: open_database(where))
    with pytest.raises(LorienError, match=r"credentials.*Fix: .*aws configure"):
        use()


# S3.


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(s3_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    url = s3_folder("seaweedfs")
    monkeypatch.setenv(name, "wrong")
    with pytest.raises(StoreUnavailable, match=r"Fix: .*aws configure"):
        list(open_logs(url).list())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("cuts", [1, 20])
def test_a_log_that_comes_in_pieces(
    s3_folder: Callable[[str], str],
    aws: Callable[[str], str],
    autotvm_log: Callable[..., Path],
    line: Callable[..., str],
    cuts: int,
) -> None:
    """One cut is mended on the way; cut again and again, it is no log, and what was there of it is gone."""
    log = autotvm_log("net.log", [line(tile=tile) for tile in range(1, 20)])
    url, proxy = s3_folder("seaweedfs"), servers.FaultyProxy(aws("seaweedfs"))
    ingest([log], open_logs(url), dialect=open_dialect("autotvm"), target=TARGET)
    store = open_logs(url.replace(aws("seaweedfs"), proxy.url))
    try:
        (stored,) = store.list()
        proxy.faults.extend([None, None] + [proxy.CUT_ANSWER] * cuts)  # the sidecar, the size
        with ExitStack() as stack:
            if cuts > 1:
                stack.enter_context(pytest.raises(StoreUnavailable, match=r"cannot read.*Fix: .*run again"))
            assert stack.enter_context(store.local(stored)).read_bytes() == log.read_bytes()
    finally:
        proxy.close()


@pytest.mark.parametrize("server", ["moto", "seaweedfs"])
def test_a_missing_bucket(aws: Callable[[str], str], server: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"Fix: .*aws s3 mb"):
        list(open_logs(f"s3://no-such-bucket/logs?endpoint_url={aws(server)}").list())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("requests", range(6))
def test_a_publication_that_is_cut_short(
    s3_folder: Callable[[str], str],
    aws: Callable[[str], str],
    autotvm_log: Callable[..., Path],
    line: Callable[..., str],
    requests: int,
) -> None:
    """Cut at any request, it leaves no log or a whole one. The same command, run again, finishes the work."""
    log = autotvm_log("net.log", [line(tile=tile) for tile in range(1, 20)])
    url, proxy = s3_folder("seaweedfs"), servers.FaultyProxy(aws("seaweedfs"))
    store, cut = open_logs(url), open_logs(url.replace(aws("seaweedfs"), proxy.url))
    try:
        proxy.faults.extend([None] * requests + [proxy.DROP] * 20)
        if requests < 5:  # list by both keys of the target, is it there, file, sidecar
            with pytest.raises(StoreUnavailable, match=r"Nothing half-written.*Fix"):
                ingest([log], cut, dialect=open_dialect("autotvm"), target=TARGET)
            assert list(store.list()) == []
        assert ingest([log], store if requests < 5 else cut, dialect=open_dialect("autotvm"), target=TARGET).new == 19
        (stored,) = store.list()
        with store.local(stored) as path:
            assert path.read_bytes() == log.read_bytes()
    finally:
        proxy.close()
