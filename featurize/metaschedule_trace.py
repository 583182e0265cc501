"""Feature set ``metaschedule_trace``: MetaSchedule's traces as they are, neither replayed nor lowered; no TVM needed.

The traces of today's TVM and of older ones, which named their instructions otherwise, have the same features.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport
from lorien.featurize.base import Features, batched
from lorien.featurize.schema import Column, FeatureSet
from lorien.featurize.trace import (
    CPU_PARTS,
    GPU_PARTS,
    Array,
    Read,
    Split,
    Tiling,
    TraceExtractor,
    product,
    tiling_columns,
)
from lorien.records import Candidate, Json, TuningRecord, Workload
from lorien.target import Target

KINDS = (
    "Annotate",
    "Bind",
    "Blockize",
    "CacheRead",
    "CacheWrite",
    "ComputeAt",
    "ComputeInline",
    "DecomposeReduction",
    "Fuse",
    "GetLoops",
    "Parallel",
    "RFactor",
    "Reorder",
    "ReverseComputeAt",
    "ReverseComputeInline",
    "SampleCategorical",
    "SampleComputeLocation",
    "SamplePerfectTile",
    "SetScope",
    "Split",
    "Tensorize",
    "Unroll",
    "Vectorize",
)
CHOICES, LOCATIONS, FACTORS = 8, 6, 8
_UNROLL_STEPS = ("pragma_auto_unroll_max_step", "meta_schedule.unroll_explicit", "meta_schedule.unroll_implicit")
_BOUND = ("parallel", "vectorize", "unroll", "threadIdx.x", "blockIdx.x", "vthread.x")
_UNKNOWN: Array = np.array(np.nan)


def _columns() -> Iterator[tuple[str, str, str]]:
    yield "workload_flop", "log2 flop", "operations of one run, where the dialect counts them"
    for kind in KINDS:
        yield f"steps_{kind}", "instructions", f"instructions {kind}"
    yield from tiling_columns()
    yield "tiled", "", "computations that are tiled"
    for index in range(CHOICES):
        yield f"choice_{index}", "log2(1+x)", f"value of choice {index}: vector lengths, steps of unrolling"
    for index in range(LOCATIONS):
        yield f"location_{index}", "", f"loop that compute location {index} names; -1 for the root, -2 inlined"
    for index in range(FACTORS):
        yield f"factor_{index}", "log2", f"fixed factor {index} of the splits that follow no choice"
    for name in _BOUND:
        yield f"{name}_loops", "", f"loops bound to {name}"
        yield f"{name}_extent", "log2", f"longest loop bound to {name}, of those whose extent the trace tells"


class TraceFeatures(TraceExtractor):
    """Implements ``FeatureExtractor`` for a dialect whose schedules are MetaSchedule's traces."""

    features = FeatureSet("metaschedule_trace", 1, tuple(Column(*column) for column in _columns()))

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect

    def extract_log(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int], batch_rows: int
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """See ``FeatureExtractor``."""
        for batch in batched(open_dialect(self.dialect).read(log, info, report, shard), batch_rows):
            yield from self.good_rows(batch, log.name, report)

    def extract(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
        """See ``FeatureExtractor``."""
        return self.rows([(workload, candidate.schedule) for candidate in candidates])[0]

    def form(self, schedule: Json) -> tuple[Json, list[float]]:
        """See ``TraceExtractor``."""
        instructions, decisions = schedule if schedule is not None else ([], [])
        form: list[Json] = []
        numbers: list[float] = []
        chosen = dict(decisions)
        for index, (kind, inputs, attributes, outputs) in enumerate(instructions):
            names = [None if isinstance(given, (int, float)) else given for given in inputs]
            numbers += [given for given in inputs if isinstance(given, (int, float))]
            decision = chosen.get(index)
            values = decision if isinstance(decision, list) else [] if decision is None else [decision]
            numbers += values
            form.append([kind.replace("SBlock", "Block"), names, attributes, outputs, len(values)])
        return form, numbers

    def describe(self, form: Json, numbers: Array) -> dict[str, Array]:
        """See ``TraceExtractor``."""
        return _Trace(form, numbers).columns()

    def describe_workload(self, workload: Workload) -> dict[str, float]:
        """See ``TraceExtractor``."""
        return {"workload_flop": float(np.log2(workload.flop))} if workload.flop else {}


class MetaScheduleTraceExtractor(TraceFeatures):
    """Of ``metaschedule``: beside the lowered features, for training without TVM."""

    def __init__(self) -> None:
        super().__init__("metaschedule")


class LegacyExtractor(TraceFeatures):
    """Of ``metaschedule_legacy``."""

    def __init__(self) -> None:
        super().__init__("metaschedule_legacy")


class _Trace:
    """The instructions of one form, run over the numbers of its records."""

    def __init__(self, form: Json, numbers: Array) -> None:
        self._values: dict[str, Array] = {}
        self._extents: dict[str, Array] = {}
        self._block_of: dict[str, str] = {}
        self._splits: dict[str, list[Split]] = defaultdict(list)
        self._bound: dict[str, list[Array]] = defaultdict(list)
        self._choices: list[Array] = []
        self._locations: list[Array] = []
        self._factors: list[Array] = []
        self._reads: dict[str, Array] = {}
        self._unroll: Array | None = None
        self._counts = Counter(kind for kind, *_ in form)
        at = 0
        for kind, inputs, attributes, outputs, decisions in form:
            fixed = sum(given is None for given in inputs)
            given = [numbers[:, at + index] for index in range(fixed)]
            decision = [numbers[:, at + fixed + index] for index in range(decisions)]
            at += fixed + decisions
            taken = iter(given)
            arguments = [next(taken) if name is None else name for name in inputs]
            run = getattr(self, f"_{kind}", None)
            if run is not None:
                run(arguments, attributes, outputs, decision)

    def columns(self) -> dict[str, Array]:
        found: dict[str, Array] = {f"steps_{kind}": np.array(float(self._counts[kind])) for kind in KINDS}
        tiled = [splits for splits in self._splits.values() if max(len(s.parts) for s in splits) >= CPU_PARTS]
        found["tiled"] = np.array(float(len(tiled)))
        if tiled:
            splits = max(tiled, key=len)
            outer = [split.parts for split in splits if len(split.parts) == GPU_PARTS]
            threads = product(parts[2] for parts in outer) if outer else None
            found |= Tiling(splits, [Read(vector) for vector in self._reads.values()], threads, self._unroll).columns()
        for prefix, values, count in (
            ("choice", [np.log2(1 + value) for value in self._choices], CHOICES),
            ("location", self._locations, LOCATIONS),
            ("factor", [np.log2(value) for value in self._factors], FACTORS),
        ):
            found |= {f"{prefix}_{index}": value for index, value in enumerate(values[:count])}
        for name in _BOUND:
            extents = self._bound[name]
            found[f"{name}_loops"] = np.array(float(len(extents)))
            if extents:
                found[f"{name}_extent"] = np.log2(np.fmax.reduce(np.broadcast_arrays(*extents)))
        return found

    def _SamplePerfectTile(self, inputs: Any, attributes: Any, outputs: Any, decision: list[Array]) -> None:  # noqa: N802
        if len(decision) != len(outputs):
            raise ValueError("a tile without its decision")
        if not all((part >= 1).all() for part in decision):
            raise ValueError("a tile of length 0")
        self._values.update(zip(outputs, decision, strict=True))
        self._extents[inputs[0]] = product(decision)

    def _SampleCategorical(self, inputs: Any, attributes: Any, outputs: Any, decision: list[Array]) -> None:  # noqa: N802
        (index,) = decision
        value = np.array(attributes[0], dtype=np.float64)[index.astype(np.int64)]
        self._values[outputs[0]] = value
        self._choices.append(value)

    def _SampleComputeLocation(self, inputs: Any, attributes: Any, outputs: Any, decision: list[Array]) -> None:  # noqa: N802
        self._locations += decision

    def _GetLoops(self, inputs: Any, attributes: Any, outputs: Any, decision: Any) -> None:  # noqa: N802
        self._block_of.update(dict.fromkeys(outputs, inputs[0]))

    def _Split(self, inputs: Any, attributes: Any, outputs: Any, decision: Any) -> None:  # noqa: N802
        loop, *factors = inputs
        extent = self._extents.get(loop, _UNKNOWN)
        sampled = all(isinstance(factor, str) and factor in self._values for factor in factors)
        given = [self._factor(factor) for factor in factors]
        rest = np.ceil(extent / product(part for part in given if part is not None))
        parts = [rest if part is None else part for part in given]
        self._extents.update(zip(outputs, parts, strict=True))
        block = self._block_of.get(loop)
        if sampled and block is not None:
            self._splits[block].append(Split(extent, parts))
        elif not sampled:
            self._factors += [part for part, given in zip(parts, factors, strict=True) if not isinstance(given, str)]
            if block in self._reads and len(parts) > 2:  # outer, threads, one load
                self._reads[block] = parts[-1]

    def _factor(self, factor: Any) -> Array | None:
        """A factor given as a number or as what was sampled; None for what is left."""
        return self._values.get(factor) if isinstance(factor, str) else factor

    def _Fuse(self, inputs: Any, attributes: Any, outputs: Any, decision: Any) -> None:  # noqa: N802
        self._extents[outputs[0]] = product(self._extents.get(loop, _UNKNOWN) for loop in inputs)
        if inputs[0] in self._block_of:
            self._block_of[outputs[0]] = self._block_of[inputs[0]]

    def _CacheRead(self, inputs: Any, attributes: Any, outputs: Any, decision: Any) -> None:  # noqa: N802
        if attributes[1] == "shared":
            self._reads[outputs[0]] = np.array(1.0)

    def _Annotate(self, inputs: Any, attributes: Any, outputs: Any, decision: Any) -> None:  # noqa: N802
        if attributes[0] in _UNROLL_STEPS:
            value = inputs[1]
            self._unroll = self._values.get(value) if isinstance(value, str) else value

    def _Bind(self, inputs: Any, attributes: Any, outputs: Any, decision: Any) -> None:  # noqa: N802
        self._bound[attributes[0]].append(self._extents.get(inputs[0], _UNKNOWN))

    def _Parallel(self, inputs: Any, attributes: Any, outputs: Any, decision: Any) -> None:  # noqa: N802
        self._bound["parallel"].append(self._extents.get(inputs[0], _UNKNOWN))

    def _Vectorize(self, inputs: Any, attributes: Any, outputs: Any, decision: Any) -> None:  # noqa: N802
        self._bound["vectorize"].append(self._extents.get(inputs[0], _UNKNOWN))

    def _Unroll(self, inputs: Any, attributes: Any, outputs: Any, decision: Any) -> None:  # noqa: N802
        self._bound["unroll"].append(self._extents.get(inputs[0], _UNKNOWN))
