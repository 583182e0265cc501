"""Workers on a Ray cluster. Ray finds them a place; what is done, and by whom, is in the job table."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from lorien.cluster import connected
from lorien.tune.worker import WorkerConfig, run_worker

_EXIT_TIMEOUT_S = 20.0
_DETAIL_CHARS = 500


class RayExecutor:
    """``Executor`` of a Ray cluster: a worker needs one of the custom resource that is named as its target's key.

    So it goes where its target is, and a node has as many workers at a time as it has devices of the target.

    Parameters
    ----------
    worker : WorkerConfig
    targets : sequence of str
        Keys of the targets, for a cluster started here: this machine is then one of each.
    address : str, optional
        See ``lorien.cluster.connected``.
    """

    def __init__(self, worker: WorkerConfig, targets: tuple[str, ...] = (), address: str | None = None) -> None:
        self._worker = worker
        self._running: dict[Any, str] = {}
        self._deaths: list[str] = []
        self._stack = ExitStack()
        self._stack.enter_context(connected(address, dict.fromkeys(targets, 1.0)))

    def start(self, target: str, count: int) -> None:
        """See ``Executor.start``. Where no node has the target, they wait until one joins."""
        import ray

        # A process of its own for each: what the last worker loaded or leaked is gone. A try again is the driver's.
        remote = ray.remote(num_cpus=1, resources={target: 1}, max_retries=0, max_calls=1)(_work)
        for _ in range(count):
            self._running[remote.remote(replace(self._worker, target=target))] = target

    def alive(self) -> Counter[str]:
        """See ``Executor.alive``."""
        self._reap(0.0)
        return Counter(self._running.values())

    def deaths(self) -> list[str]:
        """See ``Executor.deaths``."""
        self._reap(0.0)
        deaths, self._deaths = self._deaths, []
        return deaths

    def close(self) -> None:
        """See ``Executor.close``."""
        import ray

        with self._stack:
            for ref in self._running:
                ray.cancel(ref)  # an interrupt: the job goes back
            until_s = time.monotonic() + _EXIT_TIMEOUT_S
            while self._running and (left_s := until_s - time.monotonic()) > 0:
                self._reap(left_s)
            for ref in self._running:
                ray.cancel(ref, force=True)
            self._running.clear()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _reap(self, timeout_s: float) -> None:
        import ray

        if not self._running:
            return
        wanted = len(self._running) if timeout_s == 0 else 1
        ended, _ = ray.wait(list(self._running), num_returns=wanted, timeout=timeout_s)
        for ref in ended:
            del self._running[ref]
            try:
                ray.get(ref)
            except ray.exceptions.RayError as error:
                self._deaths.append(f"{type(error).__name__}: {str(error)[-_DETAIL_CHARS:]}")


def _work(config: WorkerConfig) -> int:
    """On a node: do jobs until there is none to be had; how many."""
    return sum(1 for _ in run_worker(config))
