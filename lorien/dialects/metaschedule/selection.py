"""How searches choose: who is bred from, and which of many alike are taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lorien.dialects.base import FloatArray
from lorien.dialects.metaschedule.describe import FEATURES


def breeding_weights(scores: npt.ArrayLike, pressure: float) -> FloatArray:
    """Weights (schedules,) to draw parents by: (rank / schedules) to a power, whatever the scale of the scores."""
    ranks = np.argsort(np.argsort(scores))
    weights: FloatArray = ((ranks + 1) / max(1, len(ranks))) ** pressure
    return weights


def positions(names: Sequence[str]) -> list[int]:
    """Where columns of these names are in a row."""
    return [index for index, feature in enumerate(FEATURES) if feature.name in names]


def in_turns(families: Sequence[bytes], per_family: int) -> list[int]:
    """An order of ranked schedules: ``per_family`` of each family before any family's next, the better first."""
    members: Counter[bytes] = Counter()
    rounds = []
    for family in families:
        rounds.append(members[family] // per_family)
        members[family] += 1
    return sorted(range(len(families)), key=lambda index: (rounds[index], index))
