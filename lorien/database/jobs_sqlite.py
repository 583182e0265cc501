"""Job table in the SQLite file of the schedules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import orjson

from lorien.database.jobs import GRACE_S, Counts, Job, JobState, Run, Status, initial
from lorien.database.sqlite import QUERY_PAGE, SqliteDatabase
from lorien.errors import BadInput

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS run (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS job (
        run TEXT NOT NULL, number INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (run, number))""",
    # Apart from what the job is, which can be large and never changes.
    """CREATE TABLE IF NOT EXISTS job_state (
        run TEXT NOT NULL, number INTEGER NOT NULL, target TEXT NOT NULL, status TEXT NOT NULL,
        lease_until_s REAL NOT NULL, records INTEGER NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (run, number)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS job_queue ON job_state (run, target, status, lease_until_s)",
    "CREATE INDEX IF NOT EXISTS job_count ON job_state (run, status, lease_until_s, records)",
    "CREATE TABLE IF NOT EXISTS device (key TEXT PRIMARY KEY, failures INTEGER NOT NULL) WITHOUT ROWID",
)
_QUEUE = "SELECT body FROM job_state INDEXED BY job_queue WHERE run = ? AND target = ? AND status = ?"


class SqliteJobs(SqliteDatabase):
    """``JobTable`` in the file of a ``SqliteDatabase``."""

    def __init__(self, url: str, *, create: bool | None = None) -> None:
        super().__init__(url, create=create)
        with self._transaction() as connection:
            for statement in _SCHEMA:
                connection.execute(statement)

    def add_run(self, run: Run, jobs: Iterable[Job]) -> None:
        """See ``JobTable.add_run``."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO run VALUES (?, ?)", (run.name, _text(run.to_json())))
            for job in jobs:
                values = (run.name, job.number, _text(job.to_json()))
                connection.execute("INSERT OR IGNORE INTO job VALUES (?, ?, ?)", values)
                row = _row(initial(run.name, job))
                connection.execute("INSERT OR IGNORE INTO job_state VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def run(self, name: str) -> Run | None:
        """See ``JobTable.run``."""
        found = self._bodies("SELECT body FROM run WHERE name = ?", (name,))
        return Run.from_json(orjson.loads(found[0])) if found else None

    def runs(self) -> Iterator[Run]:
        """See ``JobTable.runs``."""
        for body in self._bodies("SELECT body FROM run ORDER BY name"):
            yield Run.from_json(orjson.loads(body))

    def job(self, run: str, number: int) -> Job:
        """See ``JobTable.job``."""
        found = self._bodies("SELECT body FROM job WHERE run = ? AND number = ?", (run, number))
        if not found:
            raise BadInput(f"run {run!r} has no job {number}. Fix: lorien jobs {run} lists them")
        return Job.from_json(orjson.loads(found[0]))

    def state(self, run: str, number: int) -> JobState:
        """See ``JobTable.state``."""
        found = self._states("SELECT body FROM job_state WHERE run = ? AND number = ?", (run, number))
        if not found:
            raise BadInput(f"run {run!r} has no job {number}. Fix: lorien jobs {run} lists them")
        return found[0]

    def replace(self, old: JobState, new: JobState) -> bool:
        """See ``JobTable.replace``."""
        _, _, _, *values = _row(new)
        with self._connected() as connection:
            changed = connection.execute(
                "UPDATE job_state SET status = ?, lease_until_s = ?, records = ?, version = ?, body = ? "
                "WHERE run = ? AND number = ? AND version = ?",
                (*values, old.run, old.number, old.version),
            )
            return changed.rowcount == 1

    def waiting(self, run: str, target: str, limit: int) -> list[JobState]:
        """See ``JobTable.waiting``."""
        return self._states(f"{_QUEUE} LIMIT ?", (run, target, Status.WAITING.value, limit))

    def lapsed(self, run: str, target: str, now_s: float, limit: int) -> list[JobState]:
        """See ``JobTable.lapsed``."""
        values = (run, target, Status.LEASED.value, now_s - GRACE_S, limit)
        return self._states(f"{_QUEUE} AND lease_until_s < ? ORDER BY lease_until_s LIMIT ?", values)

    def states(self, run: str, after: int = -1) -> Iterator[JobState]:
        """See ``JobTable.states``."""
        page = "SELECT body FROM job_state WHERE run = ? AND number > ? ORDER BY number LIMIT ?"
        while found := self._states(page, (run, after, QUERY_PAGE)):
            yield from found
            after = found[-1].number

    def counts(self, run: str, now_s: float) -> Counts:
        """See ``JobTable.counts``."""
        grouped = (
            "SELECT status, count(*), sum(status = 'leased' AND lease_until_s < ?), sum(records) "
            "FROM job_state INDEXED BY job_count WHERE run = ? GROUP BY status"
        )
        with self._connected() as connection:
            rows = connection.execute(grouped, (now_s - GRACE_S, run)).fetchall()
        by_status = {Status(status): count for status, count, *_ in rows}
        return Counts(by_status, sum(row[2] for row in rows), sum(row[3] for row in rows))

    def count_failure(self, device: str) -> int:
        """See ``JobTable.count_failure``."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO device VALUES (?, 0)", (device,))
            connection.execute("UPDATE device SET failures = failures + 1 WHERE key = ?", (device,))
        return self.failures(device)

    def failures(self, device: str) -> int:
        """See ``JobTable.failures``."""
        with self._connected() as connection:
            row = connection.execute("SELECT failures FROM device WHERE key = ?", (device,)).fetchone()
        return int(row[0]) if row else 0

    def forget_failures(self, device: str) -> None:
        """See ``JobTable.forget_failures``."""
        with self._connected() as connection:
            connection.execute("DELETE FROM device WHERE key = ?", (device,))

    def __enter__(self) -> SqliteJobs:
        return self

    def _bodies(self, select: str, values: Sequence[str | int | float] = ()) -> list[str]:
        with self._connected() as connection:
            return [body for (body,) in connection.execute(select, values)]

    def _states(self, select: str, values: Sequence[str | int | float]) -> list[JobState]:
        return [JobState.from_json(orjson.loads(body)) for body in self._bodies(select, values)]


def _text(value: object) -> str:
    return orjson.dumps(value).decode()


def _row(state: JobState) -> tuple[str | int | float, ...]:
    stored = (state.status.value, state.lease_until_s, state.records, state.version, _text(state.to_json()))
    return (state.run, state.number, state.target, *stored)
