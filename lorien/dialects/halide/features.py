"""A schedule as a row of numbers: Adams2019's features of its stages, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lorien.dialects.halide.space import (
    ACCESSES,
    OPERATIONS,
    PATTERNS,
    SCHEDULE_FEATURES,
    STAGE_FEATURES,
    TYPES,
    featurization_of,
)
from lorien.errors import BadInput
from lorien.records import Json
from lorien.target import Target

Rows = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

_AT = {name: index for index, name in enumerate(STAGE_FEATURES)}
_KINDS = (*OPERATIONS, *(f"{pattern}_{access}" for pattern in PATTERNS for access in ACCESSES))
MIN_POINTS = 1.0


class Feature(NamedTuple):
    """Name, unit and meaning of a column."""

    name: str
    unit: str
    meaning: str


def _features() -> Iterator[Feature]:
    yield Feature("stages", "", "stages of the algorithm")
    yield Feature("inlined", "", "stages inlined")
    yield Feature("roots", "", "stages computed once, whole")
    yield Feature("recompute", "log2", "points computed over those needed, all stages")
    yield Feature("vectors", "log2(1+x)", "vectors computed")
    yield Feature("scalars", "log2(1+x)", "scalars computed")
    yield Feature("vector_loads", "log2(1+x)", "vectors loaded")
    yield Feature("scalar_loads", "log2(1+x)", "scalars loaded, by vectors (gathers) and by scalars")
    yield Feature("work", "log2(1+x)", "vectors and scalars computed, each times the operations of its stage")
    yield Feature("bytes_read", "log2 B", "unique bytes read, all realizations")
    yield Feature("lines_read", "log2(1+x)", "unique runs of memory read, all realizations")
    yield Feature("task_bytes", "log2(1+x) B", "unique bytes that the parallel tasks read of one another")
    yield Feature("core_use", "fraction", "use of the cores by the parallel tasks of the stage with most work")
    yield Feature("tasks_per_core", "log2", "parallel tasks a core, stage with most work")
    yield Feature("lane_use", "fraction", "vector length over the native one, stage with most work")
    for name in SCHEDULE_FEATURES:
        yield Feature(f"main_{name}", "log2(1+x)", f"{name} of the stage with most work")
        yield Feature(f"sum_{name}", "log2(1+x)", f"{name}, sum over stages")
        yield Feature(f"max_{name}", "log2(1+x)", f"{name}, largest of a stage")
    for kind in _KINDS:
        yield Feature(f"main_ops_{kind}", "", f"{kind} in the stage with most work, all types")


FEATURES = tuple(_features())


def describe(schedules: Sequence[Json], target: Target) -> Rows:
    """Rows (schedules, ``FEATURES``) in the order given; NaN for one that holds no features."""
    rows = np.full((len(schedules), len(FEATURES)), np.nan, dtype=np.float32)
    for index, given in enumerate(schedules):
        try:
            rows[index] = _row(featurization_of(given).astype(np.float64), target.num_cores or 1)
        except BadInput:
            continue
    return rows


def _row(stages: Array, cores: int) -> Array:
    def column(name: str) -> Array:
        values: Array = stages[:, _AT[name]]
        return values

    schedule = stages[:, : len(SCHEDULE_FEATURES)]
    # By kind of operation or access, all types together; which types are in use is not counted.
    kinds = stages[:, len(SCHEDULE_FEATURES) + len(TYPES) :].reshape(len(stages), len(_KINDS), len(TYPES)).sum(axis=2)
    operations = kinds[:, : len(OPERATIONS)].sum(axis=1)
    inlined = column("inlined_calls") > 0
    vectors, scalars = column("num_vectors"), column("num_scalars")
    work = (vectors + scalars) * np.maximum(operations, 1)
    main = int(np.argmax(work))
    tasks = max(column("inner_parallelism")[main] * column("outer_parallelism")[main], 1.0)
    realizations = column("num_realizations")
    points, needed = column("points_computed_total").sum(), column("points_computed_minimum").sum()
    scalar_loads = vectors * column("scalar_loads_per_vector") + scalars * column("scalar_loads_per_scalar")
    native = max(column("native_vector_size")[main], 1.0)
    totals = [
        len(stages),
        inlined.sum(),
        ((realizations == 1) & ~inlined).sum(),
        np.log2(max(points, MIN_POINTS) / max(needed, MIN_POINTS)),
        *np.log2(
            1
            + np.array(
                [
                    vectors.sum(),
                    scalars.sum(),
                    (vectors * column("vector_loads_per_vector")).sum(),
                    scalar_loads.sum(),
                    work.sum(),
                    (realizations * column("unique_bytes_read_per_realization")).sum(),
                    (realizations * column("unique_lines_read_per_realization")).sum(),
                    (tasks * column("unique_bytes_read_per_task")).sum(),
                ]
            )
        ),
        tasks / (cores * np.ceil(tasks / cores)),
        np.log2(tasks / cores),
        min(column("vector_size")[main] / native, 1.0),
    ]
    each = np.stack([schedule[main], schedule.sum(axis=0), schedule.max(axis=0)], axis=1)
    row: Array = np.concatenate([totals, np.log2(1 + np.maximum(each, 0)).ravel(), kinds[main]])
    return row
