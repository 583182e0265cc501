"""Where a tuner's time went."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from lorien.models.data import Rows
from lorien.models.metrics import FloatArray
from lorien.report.tally import WorkloadTally

_EXTRACTED = re.compile(r"(?:fused_)?([a-z]+(?:_[a-z]+)*?\dd|[a-z]+)\d*(?:_|$)")
_REDUCTION = re.compile(r"lv\d+_red")
_BESIDE = re.compile(r"pad_temp|compute|T_\w+")


def operator_of(name: str) -> str:
    """What a workload mainly is, from its name.

    ``conv2d`` of ``fused_conv2d17_add9_relu9``, ``conv2d_nchw`` of ``pad_temp+conv2d_nchw+T_add(1x3x8x8,...)``.
    """
    blocks, shaped, _ = name.partition("(")
    if not shaped:
        found = _EXTRACTED.match(name)
        return found[1] if found else name
    parts = blocks.split("+")
    main = next((part for part in parts if not _BESIDE.fullmatch(part)), parts[0])
    return "reduction" if _REDUCTION.fullmatch(main) else main


def measuring_seconds(rows: Rows, repeats: int, min_repeat_s: float) -> FloatArray:
    """Seconds that the device ran candidates of each workload: (len(rows.keys),), an estimate.

    A log says how long a candidate takes, not how often it was run. A runner repeats it until ``min_repeat_s`` have
    passed, ``repeats`` times. Building, and candidates that failed, are not counted.
    """
    ran = np.isfinite(rows.latency_s)
    own = repeats * np.maximum(min_repeat_s, rows.latency_s[ran])
    return np.bincount(rows.workload[ran], own, len(rows.keys)).astype(np.float64)


def network_seconds(workloads: Iterable[WorkloadTally]) -> dict[str, dict[str, float]]:
    """By network, seconds of one inference in the best schedules of each operator; what never ran is left out."""
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for own in workloads:
        for network, calls in own.weights.items() if own.steps else ():
            seconds[network][operator_of(own.name)] += calls * own.best_s
    return {network: dict(of) for network, of in seconds.items()}
