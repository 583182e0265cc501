"""Jobs handed out to workers: each change of a job is compared and set, and time is an argument."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from lorien.database import jobs as rules
from lorien.database.jobs import JobError, JobState, JobTable, Run
from lorien.errors import BadInput, DatabaseUnavailable

CHOICE = 16
"""Jobs that a worker chooses from by lot, of those tried least: workers that come together seldom want the same."""
ATTEMPTS = 8
"""Times that it looks again when others have taken all of these."""
MAX_TRIES = 60


def find_run(table: JobTable, name: str) -> Run:
    """A run by its name. Raises ``BadInput`` when there is none."""
    if (run := table.run(name)) is None:
        raise BadInput(f"no run {name!r} in this database. Fix: lorien jobs runs --db URL lists the runs")
    return run


class JobQueue:
    """The jobs of one run. Safe across threads and processes, as its table is.

    All methods raise ``DatabaseUnavailable``; what was asked for may then be done or not, and asking again is safe.
    """

    def __init__(self, table: JobTable, run: Run) -> None:
        self._table = table
        self.run = run

    def claim(self, worker: str, target: str, now_s: float) -> JobState | None:
        """A job that waits, else one whose lease has lapsed, now leased to ``worker``; None when there is none.

        ``worker`` must be a name that no other process has. A job that lapsed once too often is set aside here.
        """
        run = self.run
        find = (
            partial(self._table.waiting, run.name, target, CHOICE),
            partial(self._table.lapsed, run.name, target, now_s, CHOICE),
        )
        for some in find:
            for _ in range(ATTEMPTS):
                if not (found := some()):
                    break
                # The least tried first: else a broken device may use up all tries of one job before it is set aside.
                for state in sorted(random.sample(found, len(found)), key=lambda state: state.tries):
                    new = rules.claimed(state, worker, run.max_tries, run.lease_s, now_s)
                    if new is None:
                        continue
                    mine = self._table.replace(state, new) or self._table.state(run.name, state.number) == new
                    if mine and new.status is rules.Status.LEASED:
                        return new
        return None

    def heartbeat(self, job: JobState, records: int, now_s: float) -> JobState:
        """Extend the lease. Raises ``LeaseLost`` when it is another's by now, or the job was cancelled."""
        return self._change(job, lambda s: rules.renewed(s, job.token, records, self.run.lease_s, now_s))

    def seal(self, job: JobState, log: str, records: int) -> JobState:
        """Name the one log that is the job's: after this, nobody writes to it. Raises ``LeaseLost``."""
        return self._change(job, lambda s: rules.sealed(s, job.token, log, records))

    def finish(self, job: JobState) -> JobState:
        """The job is done. Raises ``LeaseLost``."""
        return self._change(job, lambda s: rules.done(s, job.token))

    def fail(self, job: JobState, error: JobError, detail: str, *, again: bool) -> JobState:
        """The job failed; ``again`` it is tried, as long as tries are left. Raises ``LeaseLost``."""
        return self._change(
            job, lambda s: rules.failed(s, job.token, error, detail, again=again, max_tries=self.run.max_tries)
        )

    def give_back(self, job: JobState) -> JobState:
        """The worker is asked to end: the job waits for another. Raises ``LeaseLost``."""
        return self._change(job, lambda s: rules.given_back(s, job.token))

    def cancel(self) -> int:
        """Cancel all jobs that are open; their workers stop at the next heartbeat. How many jobs these were."""
        return self._change_all(rules.cancelled)

    def retry(self) -> int:
        """Let all jobs that failed, were cancelled or set aside wait again. How many these were."""
        return self._change_all(rules.retried)

    def _change(self, state: JobState, rule: Callable[[JobState], JobState]) -> JobState:
        for _ in range(MAX_TRIES):
            new = rule(state)
            if self._table.replace(state, new):
                return new
            state = self._table.state(self.run.name, state.number)
            if state == new:
                return new  # It was written, only the answer was lost.
        raise DatabaseUnavailable(
            f"run {self.run.name!r}: others changed job {state.number} {MAX_TRIES} times. Nothing was changed. "
            "Fix: run again"
        )

    def _change_all(self, rule: Callable[[JobState], JobState | None]) -> int:
        changed = 0
        for state in self._table.states(self.run.name):
            current = state
            while (new := rule(current)) is not None:
                if self._table.replace(current, new):
                    changed += 1
                    break
                current = self._table.state(self.run.name, state.number)
        return changed
