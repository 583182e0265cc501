"""Workers as jobs of AWS Batch. Batch finds them machines; what is done, and by whom, is in the job table."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lorien.aws import Service, explained
from lorien.database.jobs import open_jobs
from lorien.errors import LorienError
from lorien.tune.worker import WorkerConfig

logger = logging.getLogger(__name__)

MAX_ARRAY = 10_000
STARTING_S = 900.0
"""How long a container may take to start: what takes longer waits for an image that does not come."""
_DESCRIBE = 100  # the most that Batch describes at once
_OVER = ("SUCCEEDED", "FAILED")
_REASON = "lorien: no longer wanted"


@dataclass
class _Worker:
    target: str
    starting_since_s: float | None = None
    terminated: bool = False


class BatchExecutor:
    """``Executor`` of a queue of AWS Batch: each worker is a container that runs ``lorien worker``.

    A worker that hangs lets its lease lapse: it is terminated here, and the driver asks for another.

    Parameters
    ----------
    worker : WorkerConfig
        Its database and log store must be where containers reach them: DynamoDB and S3.
    queue : str
        ``batch://QUEUE?region=...&endpoint_url=...``
    definition : str
        Job definition, ``NAME`` or ``NAME:REVISION``; its image holds Lorien.
    """

    def __init__(self, worker: WorkerConfig, queue: str, definition: str) -> None:
        self._worker = worker
        self._service = Service("batch", queue)
        self._definition = definition
        self._running: dict[str, _Worker] = {}
        self._deaths: list[str] = []

    def start(self, target: str, count: int) -> None:
        """See ``Executor.start``. More than one make an array job."""
        while count > 0:
            size = min(count, MAX_ARRAY)
            count -= size
            arguments = ["lorien", "worker", *replace(self._worker, target=target).arguments, "--json"]
            array = {"arrayProperties": {"size": size}} if size > 1 else {}
            with self._explained("submit workers to"):
                job = self._service.client.submit_job(
                    jobName=f"lorien-{self._worker.run}"[:128].replace(".", "_").replace("+", "_"),
                    jobQueue=self._service.name,
                    jobDefinition=self._definition,
                    containerOverrides={"command": arguments},
                    **array,
                )["jobId"]
            names = [f"{job}:{index}" for index in range(size)] if size > 1 else [job]
            self._running.update({name: _Worker(target) for name in names})

    def alive(self) -> Counter[str]:
        """See ``Executor.alive``."""
        self._follow()
        return Counter(worker.target for worker in self._running.values())

    def deaths(self) -> list[str]:
        """See ``Executor.deaths``."""
        deaths, self._deaths = self._deaths, []
        return deaths

    def close(self) -> None:
        """See ``Executor.close``."""
        for name, worker in self._running.items():
            if not worker.terminated:  # Batch keeps the last reason, and that one says more
                self._terminate(name, _REASON)
        self._running.clear()
        self._service.close()

    def __enter__(self) -> BatchExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _follow(self) -> None:
        now_s = time.monotonic()
        for job in self._described():
            name, status = job["jobId"], job["status"]
            worker = self._running[name]
            if status in _OVER:
                del self._running[name]
                if status == "FAILED" and not worker.terminated:
                    container = job.get("container", {})
                    said = (job.get("statusReason"), container.get("reason"), f"exit code {container.get('exitCode')}")
                    self._deaths.append(f"Batch job {name}: {'; '.join(filter(None, said))}")
            elif status != "STARTING":
                worker.starting_since_s = None
            elif worker.starting_since_s is None:
                worker.starting_since_s = now_s
            elif now_s - worker.starting_since_s > STARTING_S:
                self._give_up(name, f"it has been starting for {STARTING_S:g} s")
        for name in self._hung():
            self._give_up(name, "its lease has lapsed")

    def _described(self) -> Iterator[dict[str, Any]]:
        names = list(self._running)
        for start in range(0, len(names), _DESCRIBE):
            with self._explained("follow workers in"):
                answer = self._service.client.describe_jobs(jobs=names[start : start + _DESCRIBE])
            yield from answer["jobs"]

    def _hung(self) -> list[str]:
        """Running workers that hold a job whose lease has lapsed."""
        targets = {worker.target for worker in self._running.values()}
        with open_jobs(self._worker.db, create=False) as table:
            lapsed = [s for t in targets for s in table.lapsed(self._worker.run, t, time.time(), _DESCRIBE)]
        return [name for state in lapsed if (name := state.worker.rsplit(":", 2)[0]) in self._running]

    def _give_up(self, name: str, why: str) -> None:
        if not self._running[name].terminated:
            logger.warning("Batch job %s is ended: %s. Another takes its place", name, why)
            self._running[name].terminated = True
            self._terminate(name, f"lorien: {why}")

    def _terminate(self, name: str, why: str) -> None:
        with self._explained("end a worker in"):
            self._service.client.terminate_job(jobId=name, reason=why)

    def _explained(self, verb: str) -> Any:
        return explained(LorienError, f"cannot {verb} batch://{self._service.name}", "The jobs are kept.")
