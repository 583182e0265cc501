"""Schedules that are alike: where a model is wrong of one, it is wrong of all of its family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def in_turns(families: Sequence[bytes], per_family: int) -> list[int]:
    """An order of ranked schedules: ``per_family`` of each family before any family's next, the better first."""
    members: Counter[bytes] = Counter()
    rounds = []
    for family in families:
        rounds.append(members[family] // per_family)
        members[family] += 1
    return sorted(range(len(families)), key=lambda index: (rounds[index], index))
