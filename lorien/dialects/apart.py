"""Models read in a process of their own: a compiler that crashes on one costs that model, and not the command."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

from pebble import ProcessExpired, ProcessPool

from lorien.dialects import open_live_dialect
from lorien.errors import LorienError
from lorien.records import Layout, Workload
from lorien.target import Target

logger = logging.getLogger(__name__)

Shapes: TypeAlias = dict[str, tuple[int, ...]]
Extract: TypeAlias = Callable[[Path, str], list[Workload]]


@contextlib.contextmanager
def extracting(
    dialect: str, target: Target, shapes: Shapes, *, allow_code: bool = False, layout: Layout = "auto"
) -> Iterator[Extract]:
    """A function that extracts the workloads of a model, for a network of a name, in a child process.

    The child lives for all calls, and loads the framework once. What it logs from warnings on is logged here.

    Yields
    ------
    callable
        From a model's path and its network's name. Raises ``LorienError`` whatever the model does, and when it gives no
        workload; the next model can be extracted all the same.
    """
    with ProcessPool(max_workers=1, context=get_context("spawn")) as pool:

        def extract(model: Path, network: str) -> list[Workload]:
            # Not every dialect has layouts.
            options = {"allow_code": allow_code} | ({} if layout == "auto" else {"layout": layout})
            future = pool.schedule(workloads_and_log, args=[dialect, model, network, target, shapes, options])
            try:
                answer: tuple[list[Workload], LorienError | None, list[logging.LogRecord]] = future.result()
            except ProcessExpired as ended:
                raise LorienError(
                    f"{model}: the compiler crashed on it ({_ended(ended.exitcode)}); the other models are kept. "
                    "Fix: export it anew, or in parts"
                ) from ended
            workloads, error, records = answer
            for record in records:
                logging.getLogger(record.name).handle(record)
            if error is not None:
                raise error
            return workloads

        try:
            yield extract
        except BaseException:  # an interrupt does not wait for the model at hand
            pool.stop()
            raise


def workloads_and_log(
    dialect: str, model: Path, network: str, target: Target, shapes: Shapes, options: dict[str, Any]
) -> tuple[list[Workload], LorienError | None, list[logging.LogRecord]]:
    """Workloads of a model, or why there are none, and what was logged meanwhile. Called in the child."""
    import dataclasses

    kept = _Kept()
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [kept]
    workloads: list[Workload] = []
    error: LorienError | None = None
    try:
        workloads = open_live_dialect(dialect).extract(model, target, shapes, **options)
        if not workloads:
            error = LorienError(f"{model} has no workload that can be tuned. Fix: leave it out")
    except LorienError as raised:
        error = raised
    except OSError as raised:
        error = LorienError(f"{model} cannot be read: {raised}. Fix: check the file and its permissions")
    except Exception as raised:  # of a stranger's model
        error = LorienError(
            f"{model} cannot be read, and Lorien did not expect why ({type(raised).__name__}). "
            "Fix: report it with the model; export it with other settings meanwhile"
        )
    finally:
        root.handlers = handlers
    # A dialect without networks leaves them empty.
    named = [dataclasses.replace(w, networks=(network,)) if w.networks else w for w in workloads]
    return named, error, kept.records


def _ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as when memory is short" if name == "SIGKILL" else name


class _Kept(logging.Handler):
    """Warnings in a form that another process can be told."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.records.append(record)
