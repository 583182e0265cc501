"""Feature tables and databases of any size for tests and benchmarks of reports, and a browser to read pages with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lorien.featurize.schema import Column, FeatureSet
from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page

FEATURES = FeatureSet("toy", 1, (Column("tile", "1", "a tile size"),))
TARGETS = [Target.parse(f"llvm -mcpu={name} -num-cores=2") for name in ("znver4", "skylake")]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def named(number: int) -> Workload:
    """A convolution with a name as MetaSchedule logs have them, and its operations."""
    channels, size = 16 * (1 + number % 37), 7 * (1 + number % 29)
    name = (
        f"pad_temp+conv2d_nchw+T_add+T_relu(1x{channels}x{size}x{size},{number}x{channels}x3x3,"
        f"1x{number}x1x1,1x{number}x{size}x{size})"
    )
    return Workload("toy", name, [number], flop=18.0 * channels * size * size * (1 + number % 211))


def write_tables(folder: Path, workloads: int, trials: int) -> int:
    """Tables of so many workloads on two targets; a tenth of the records failed. Rows written."""
    rng = np.random.default_rng(0)
    rows = 0
    for place, target in enumerate(TARGETS):
        own = [named(number) for number in range(place, workloads, len(TARGETS))]
        number = np.repeat(np.arange(len(own)), trials)
        flop = np.array([workload.flop for workload in own])
        ran = rng.random(len(number)) >= 0.1
        latency_s = flop[number] / 1e9 / np.exp(rng.normal(3, 0.8, len(number)))
        kinds = np.array(["build_error", "run_timeout", "run_error"])[rng.integers(0, 3, len(number))]

        def of(values: Sequence[object], number: np.ndarray = number) -> pa.Array:
            return pa.DictionaryArray.from_arrays(number, pa.array(values)).cast(pa.array(values).type)

        columns = {
            "workload_key": of([workload.key for workload in own]),
            "workload": of([workload.name for workload in own]),
            "network": of([f"network{i % 12}" for i in range(len(own))]),
            "weight": of([float(1 + i % 7) for i in range(len(own))]),
            "flop": of([workload.flop for workload in own]),
            "candidate": pa.array([f"{i:016x}" for i in range(len(number))]),
            "build": pa.array(["toy 1"] * len(number)),
            "latency_s": pa.array(latency_s, mask=~ran),
            "error": pa.array(kinds, mask=ran),
            "tile": pa.array(rng.random(len(number), dtype=np.float32)),
        }
        path = folder / "dialect=toy" / f"target={target.key}" / "log-0of1.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = FEATURES.arrow_schema("toy", target.key, {"log": "toy", "fingerprint": target.key, "shard": "0/1"})
        pq.write_table(pa.table(columns, schema=schema), path, row_group_size=1 << 16)
        rows += len(number)
    return rows


def schedules(workloads: int) -> Iterator[TuningRecord]:
    """A schedule of each workload on its target, of some two thousand characters."""
    for number in range(workloads):
        workload = named(number)
        steps = [["split", f"l{i}", [1, 2, 3, number % 64]] for i in range(60)]
        measured = Measurement(Outcome.OK, ((workload.flop or 0) / 1e11,))
        yield TuningRecord(workload, TARGETS[number % len(TARGETS)], Candidate(steps), measured, "toy 1")


@dataclass
class Visit:
    """A page that was opened, and what it did that it should not."""

    page: Page
    protocol: CDPSession
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def processor_s(self) -> float:
        """Seconds that the page's own thread has worked."""
        metrics = self.protocol.send("Performance.getMetrics")["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime"))


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    # In containers tests run as root, where Chromium wants its sandbox off.
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


@contextmanager
def visit(
    running: Browser, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, ready: str = ""
) -> Iterator[Visit]:
    """Open a page in a window of its own; return when the selector ``ready`` is there."""
    window = running.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page = window.new_page()
    seen = Visit(page, window.new_cdp_session(page))
    seen.protocol.send("Performance.enable", {"timeDomain": "threadTicks"})
    seen.page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(url)
    if ready:
        seen.page.wait_for_selector(ready)
    yield seen
    window.close()
