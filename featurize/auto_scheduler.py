"""Feature set ``auto_scheduler``: what Ansor's steps are, the loop nests they make, and the sizes these imply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lorien.dialects.auto_scheduler import AutoSchedulerDialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.featurize.auto_scheduler_state import (
    BLOCKS,
    KINDS,
    PARALLEL,
    THREADS,
    UNROLL,
    VECTORIZE,
    VTHREAD,
    Stage,
    replay,
    skeleton,
)
from lorien.featurize.base import Features, batched
from lorien.featurize.schema import Column, FeatureSet
from lorien.featurize.trace import ONE, WARP, Array, Read, Tiling, TraceExtractor, tiling_columns
from lorien.records import Candidate, Json, TuningRecord, Workload
from lorien.target import Target


def _columns() -> Iterator[tuple[str, str, str]]:
    for kind in KINDS:
        yield f"steps_{kind}", "steps", f"transform steps of kind {kind}"
    yield from tiling_columns()
    for place in ("last", "first"):
        yield f"{place}_blocks", "log2", f"blocks of the {place} kernel"
        yield f"{place}_threads", "log2", f"threads in a block of the {place} kernel"
        yield f"{place}_vthreads", "log2", f"virtual threads of the {place} kernel"
        yield f"{place}_warp_use", "fraction", f"threads over lanes of the warps, {place} kernel"
        yield f"{place}_size", "log2", f"iterations of the {place} kernel's bound loops"
        yield f"{place}_unroll", "log2(1+steps)", f"auto_unroll_max_step of the {place} kernel"
    yield "kernels", "", "stages computed on their own"
    yield "inlined", "", "stages inlined"
    yield "parallel", "log2", "iterations shared out to the cores (CPU)"
    yield "vector", "log2", "longest vectorised loop"
    yield "unrolled", "log2", "longest loop annotated unroll"


class AutoSchedulerExtractor(TraceExtractor):
    """Implements ``FeatureExtractor``; NaN where a feature has no meaning for the steps."""

    dialect = AutoSchedulerDialect.name
    features = FeatureSet("auto_scheduler", 1, tuple(Column(*column) for column in _columns()))

    def extract_log(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int], batch_rows: int
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """See ``FeatureExtractor``."""
        for batch in batched(AutoSchedulerDialect().read(log, info, report, shard), batch_rows):
            yield from self.good_rows(batch, log.name, report)

    def extract(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
        """See ``FeatureExtractor``."""
        return self.rows([(workload, candidate.schedule) for candidate in candidates])[0]

    def form(self, schedule: Json) -> tuple[Json, list[float]]:
        """See ``TraceExtractor``."""
        return skeleton(schedule)

    def describe(self, form: Json, numbers: Array) -> dict[str, Array]:
        """See ``TraceExtractor``."""
        stages = replay(form, numbers)
        counts = Counter(step[0] for step in form)
        found: dict[str, Array] = {f"steps_{kind}": np.array(float(counts[kind])) for kind in KINDS}
        kernels = [s for s in stages if s.at is None and not s.inlined and s.bound(BLOCKS) is not None]
        found["kernels"] = np.array(float(len(kernels)))
        found["inlined"] = np.array(float(sum(stage.inlined for stage in stages)))
        for name, annotation in (("parallel", PARALLEL), ("vector", VECTORIZE), ("unrolled", UNROLL)):
            bounds = [bound for stage in stages if (bound := stage.bound((annotation,))) is not None]
            if bounds:
                found[name] = np.log2(np.max(np.broadcast_arrays(*bounds), axis=0))
        if kernels:
            found |= _kernel("last", kernels[-1]) | _kernel("first", kernels[0])
        tiled = max(stages, key=lambda stage: len(stage.splits), default=Stage())
        tiling = Tiling(
            splits=tiled.splits,
            reads=[Read(s.splits[0].parts[-1], s.splits[0].extent) for s in stages if s.scope == "shared" and s.splits],
            threads=kernels[-1].bound(THREADS) if kernels else None,
            unroll=next((stage.unroll for stage in stages if stage.unroll is not None), None),
        )
        return found | tiling.columns()

    def describe_workload(self, workload: Workload) -> dict[str, float]:
        """None: with the arguments of its key a model remembers workloads, and ranks new ones worse."""
        return {}


def _kernel(place: str, stage: Stage) -> dict[str, Array]:
    threads = _bound(stage, *THREADS)
    sizes = {
        "blocks": _bound(stage, *BLOCKS),
        "threads": threads,
        "vthreads": _bound(stage, VTHREAD),
        "size": _bound(stage, *BLOCKS, *THREADS, VTHREAD),
    }
    found = {f"{place}_{name}": np.log2(size) for name, size in sizes.items()}
    found[f"{place}_warp_use"] = threads / (WARP * np.ceil(threads / WARP))
    if stage.unroll is not None:
        found[f"{place}_unroll"] = np.log2(1 + stage.unroll)
    return found


def _bound(stage: Stage, *annotations: int) -> Array:
    extent = stage.bound(annotations)
    return ONE if extent is None else extent
