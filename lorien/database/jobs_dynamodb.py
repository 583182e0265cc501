"""Job table in the DynamoDB table of the schedules.

A run is a partition: ``job#<number>`` says what a job is, ``state#<number>``, apart from it and small, how far it is.
The sparse index of the schedules also holds the open jobs, by run, status and target: a claim reads a page of it. The
index may be a moment behind the table; what it names is read again, consistently, before it counts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from lorien.aws import MAX_CONNECTIONS
from lorien.database.dynamodb import DynamoDatabase
from lorien.database.dynamodb_rows import (
    ABOUT,
    ITEM,
    RELATED,
    TARGET,
    PartsGone,
    Row,
    damaged,
    key_of,
    part_keys,
    row_of,
    spilled,
    stored,
    value_of,
)
from lorien.database.jobs import GRACE_S, OPEN, Counts, Job, JobState, Run, Status, initial
from lorien.errors import BadInput

_PARTITION = "lorien-run#"
_PAGE = 400


class DynamoJobs(DynamoDatabase):
    """``JobTable`` in the table of a ``DynamoDatabase``. A run's name is written when all of its jobs are."""

    def __init__(self, url: str, *, create: bool | None = None) -> None:
        super().__init__(url, create=create)

    def add_run(self, run: Run, jobs: Iterable[Job]) -> None:
        """See ``JobTable.add_run``."""
        jobs = iter(jobs)
        with self._explained(), ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
            while page := list(itertools.islice(jobs, _PAGE)):
                list(pool.map(lambda job: self._add(run.name, job), page))
            about = {TARGET: ABOUT, ITEM: f"run#{run.name}", "body": _text(run.to_json())}
            self._write(about, None)

    def run(self, name: str) -> Run | None:
        """See ``JobTable.run``."""
        with self._explained():
            row = self._one((ABOUT, f"run#{name}"))
        return Run.from_json(orjson.loads(row["body"])) if row else None

    def runs(self) -> Iterator[Run]:
        """See ``JobTable.runs``."""
        with self._explained():
            for row in self._rows(ABOUT, "run#"):
                yield Run.from_json(orjson.loads(row["body"]))

    def job(self, run: str, number: int) -> Job:
        """See ``JobTable.job``."""
        row = self._of(run, number, "job")
        with self._explained():
            parts = self._read(part_keys(row, "body"))
        try:
            return Job.from_json(orjson.loads(value_of(row, "body", parts) or ""))
        except (PartsGone, ValueError) as error:
            raise damaged(row, error) from error

    def state(self, run: str, number: int) -> JobState:
        """See ``JobTable.state``."""
        return _state(self._of(run, number, "state"))

    def replace(self, old: JobState, new: JobState) -> bool:
        """See ``JobTable.replace``."""
        with self._explained():
            return self._write(_state_row(new), str(old.version))

    def waiting(self, run: str, target: str, limit: int) -> list[JobState]:
        """See ``JobTable.waiting``."""
        with self._explained():
            answer = self._service.client.query(**self._queue(run, Status.WAITING, target), Limit=limit)
            return self._states(answer["Items"])

    def lapsed(self, run: str, target: str, now_s: float, limit: int) -> list[JobState]:
        """See ``JobTable.lapsed``. Reads all leased jobs of the target: as many as it has workers."""
        with self._explained():
            pages = self._service.client.get_paginator("query").paginate(**self._queue(run, Status.LEASED, target))
            leased = self._states(item for page in pages for item in page["Items"])
        return [state for state in leased if state.lapsed(now_s)][:limit]

    def states(self, run: str, after: int = -1) -> Iterator[JobState]:
        """See ``JobTable.states``."""
        with self._explained():
            for row in self._rows(_PARTITION + run, "state#"):
                state = _state(row)
                if state.number > after:
                    yield state

    def counts(self, run: str, now_s: float) -> Counts:
        """See ``JobTable.counts``. Reads all states of the run: some 10,000 jobs to a megabyte or two."""
        by_status: Counter[Status] = Counter()
        lapsed = records = 0
        with self._explained():
            for row in self._rows(_PARTITION + run, "state#"):
                status = Status(row["status"])
                by_status[status] += 1
                lapsed += status is Status.LEASED and float(row["lease_until_s"]) + GRACE_S < now_s
                records += int(row["records"])
        return Counts(dict(by_status), lapsed, records)

    def count_failure(self, device: str) -> int:
        """See ``JobTable.count_failure``."""
        with self._explained():
            answer = self._service.client.update_item(
                TableName=self._table,
                Key=stored(_device(device)),
                UpdateExpression="ADD failures :one",
                ExpressionAttributeValues={":one": {"N": "1"}},
                ReturnValues="UPDATED_NEW",
            )
            return int(answer["Attributes"]["failures"]["N"])

    def failures(self, device: str) -> int:
        """See ``JobTable.failures``."""
        with self._explained():
            answer = self._service.client.get_item(
                TableName=self._table, Key=stored(_device(device)), ConsistentRead=True
            )
            return int(answer["Item"]["failures"]["N"]) if "Item" in answer else 0

    def forget_failures(self, device: str) -> None:
        """See ``JobTable.forget_failures``."""
        with self._explained():
            self._service.client.delete_item(TableName=self._table, Key=stored(_device(device)))

    def __enter__(self) -> DynamoJobs:
        return self

    def _add(self, run: str, job: Job) -> None:
        """What a job is, then its state. What is there already stays."""
        row = {TARGET: _PARTITION + run, ITEM: f"job#{job.number:08d}", "body": _text(job.to_json())}
        row, parts = spilled(row, ("body",))
        if parts:
            self._upgrade()  # an older Lorien knows no parts
        for part in parts:
            self._write(part, None)
        if not self._write(row, None):
            self._discard(map(key_of, parts))
        self._write(_state_row(initial(run, job)), None)

    def _queue(self, run: str, status: Status, target: str) -> dict[str, Any]:
        return {
            "TableName": self._table,
            "IndexName": RELATED,
            "KeyConditionExpression": f"{RELATED} = :queue",
            "ExpressionAttributeValues": stored({":queue": _queue_key(run, status, target)}),
        }

    def _states(self, items: Iterable[dict[str, dict[str, str]]]) -> list[JobState]:
        """As of now, of keys that the index named."""
        keys = [(row[TARGET], row[ITEM]) for row in map(row_of, items)]
        found = self._read(keys)
        return [_state(found[key]) for key in keys if key in found]

    def _of(self, run: str, number: int, kind: str) -> Row:
        with self._explained():
            row = self._one((_PARTITION + run, f"{kind}#{number:08d}"))
        if row is None:
            raise BadInput(f"run {run!r} has no job {number}. Fix: lorien jobs {run} lists them")
        return row


def _text(value: object) -> str:
    return orjson.dumps(value).decode()


def _queue_key(run: str, status: Status, target: str) -> str:
    return f"{_PARTITION}{run}#{status.value}#{target}"


def _device(key: str) -> Row:
    return {TARGET: ABOUT, ITEM: f"device#{key}"}


def _state_row(state: JobState) -> Row:
    row = {
        TARGET: _PARTITION + state.run,
        ITEM: f"state#{state.number:08d}",
        "version": str(state.version),
        "status": state.status.value,
        "lease_until_s": str(state.lease_until_s),
        "records": str(state.records),
        "body": _text(state.to_json()),
    }
    if state.status in OPEN:
        row[RELATED] = _queue_key(state.run, state.status, state.target)
    return row


def _state(row: Row) -> JobState:
    return JobState.from_json(orjson.loads(row["body"]))
