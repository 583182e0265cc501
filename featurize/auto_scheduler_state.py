"""The loop nests that Ansor's transform steps make, over many records at once.

Records whose steps differ in numbers alone (extents, lengths of splits, pragma values) are replayed together: every
extent is an array (records,). An extent that the steps do not tell is NaN: a log holds no shapes, but a split names the
extent of the loop it cuts. Source: ``src/auto_scheduler/transform_step.cc`` and ``loop_state.cc`` of TVM 0.18.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lorien.featurize.trace import Array, Split
from lorien.records import Json

KINDS = ("AN", "FU", "PR", "RE", "SP", "FSP", "FFSP", "SA", "CA", "CI", "CR", "CHR", "CHW", "RF")
NONE, UNROLL, VECTORIZE, PARALLEL, VTHREAD = range(5)
"""Annotations of a loop; 5 to 10 bind it to blockIdx.x, threadIdx.x, blockIdx.y, threadIdx.y, and z."""
BLOCKS, THREADS = (5, 7, 9), (6, 8, 10)
UNROLL_PRAGMA = "auto_unroll_max_step"
# A longer nest or a larger stage number than any compiler makes is a damaged line.
MAX_LOOPS = 64


@dataclass
class Loop:
    """A loop of a stage; ``annotation`` as Ansor numbers them."""

    extent: Array
    annotation: int = NONE


@dataclass
class Stage:
    """A computation: its loops from the outermost, and how the steps made them."""

    loops: list[Loop] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    scope: str = ""
    at: Stage | None = None
    inlined: bool = False
    unroll: Array | None = None

    def loop(self, index: int) -> Loop:
        """A loop by its number; loops that no step has told of yet have an unknown extent."""
        if not 0 <= index < MAX_LOOPS:
            raise ValueError(f"loop {index}")
        while len(self.loops) <= index:
            self.loops.append(Loop(np.array(np.nan)))
        return self.loops[index]

    def bound(self, annotations: Sequence[int]) -> Array | None:
        """Product of the extents of the loops with one of these annotations; None when there is none."""
        found = [loop.extent for loop in self.loops if loop.annotation in annotations]
        return np.prod(np.broadcast_arrays(*found), axis=0) if found else None


def skeleton(steps: Sequence[Json]) -> tuple[Json, list[float]]:
    """Steps without their numbers, and the numbers, in the order in which ``replay`` takes them.

    Raises
    ------
    ValueError, TypeError, IndexError
        A step is not of the form of its kind.
    """
    form: list[Json] = []
    numbers: list[float] = []
    for step in steps:
        kind = step[0]
        if kind == "SP":
            _, stage, loop, extent, lengths, inner_to_outer = step
            form.append(("SP", stage, loop, len(lengths), inner_to_outer))
            numbers.append(np.nan if extent is None else extent)
            numbers += [1 if length is None else length for length in lengths]
        elif kind == "PR":
            name, _, value = step[3].partition("$")
            form.append(("PR", step[1], step[2], name))
            numbers.append(float(value or 0))
        else:
            form.append(step)
    return form, numbers


def replay(form: Sequence[Json], numbers: Array) -> list[Stage]:
    """Stages after all steps; ``numbers`` is (records, numbers of the form).

    Raises
    ------
    ValueError, TypeError, IndexError
        The steps do not fit one another.
    """
    state = _State(numbers)
    for index, (kind, stage, *arguments) in enumerate(form):
        if kind not in KINDS:
            raise ValueError(f"step kind {kind!r}")
        state.apply(index, kind, stage, arguments)
    return state.stages


class _State:
    def __init__(self, numbers: Array) -> None:
        self.stages: list[Stage] = []
        self._numbers = numbers
        self._at = 0
        self._cuts: dict[int, tuple[Array, list[Array], bool]] = {}

    def _take(self, count: int) -> list[Array]:
        taken = [self._numbers[:, self._at + offset] for offset in range(count)]
        self._at += count
        return taken

    def _stage(self, number: int) -> Stage:
        if not 0 <= number < MAX_LOOPS:
            raise ValueError(f"stage {number}")
        while len(self.stages) <= number:
            self.stages.append(Stage())
        return self.stages[number]

    def apply(self, index: int, kind: str, number: int, arguments: Sequence[Json]) -> None:
        """One step."""
        stage = self._stage(number)
        if kind == "SP":
            loop, count, inner_to_outer = arguments
            extent, *lengths = self._take(1 + count)
            self._cuts[index] = extent, lengths, bool(inner_to_outer)
            self._split(stage, loop, lengths, bool(inner_to_outer), extent)
        elif kind == "FSP":
            loop, source, parts = arguments
            extent, lengths, inner_to_outer = self._cuts[source]
            last = np.prod(lengths[parts - 1 :], axis=0)
            # The loop that follows runs over the same axis.
            self._split(stage, loop, [*lengths[: parts - 1], last], inner_to_outer, extent)
        elif kind == "FFSP":
            loop, sources, level, is_factor = arguments
            length = np.prod([self._cuts[source][1][level] for source in sources], axis=0)
            self._split(stage, loop, [length], bool(is_factor))
        elif kind == "FU":
            (fused,) = arguments
            loops = [stage.loop(number) for number in fused]
            extents = np.broadcast_arrays(*(loop.extent for loop in loops))
            stage.loops[fused[0] : fused[-1] + 1] = [Loop(np.prod(extents, axis=0))]
        elif kind == "RE":
            (order,) = arguments
            stage.loops = [stage.loop(number) for number in order]
        elif kind == "AN":
            loop, annotation = arguments
            stage.loop(loop).annotation = annotation
        elif kind == "PR":
            _, name = arguments
            (value,) = self._take(1)
            if name == UNROLL_PRAGMA:
                stage.unroll = value
        elif kind == "CA":
            stage.at = self._stage(arguments[0])
        elif kind == "CR":
            stage.at = None
        elif kind == "CI":
            stage.inlined = True
        elif kind == "CHR":
            self.stages.insert(number + 1, Stage(scope=arguments[0]))
        elif kind == "CHW":
            self.stages.insert(number, Stage(scope=arguments[0]))
        elif kind == "RF":
            self.stages.insert(number, Stage(scope="rfactor"))

    def _split(
        self, stage: Stage, number: int, lengths: list[Array], inner_to_outer: bool, extent: Array | None = None
    ) -> None:
        loop = stage.loop(number)
        if extent is None or np.isnan(extent).all():
            extent = loop.extent
        product = np.prod(lengths, axis=0)
        if not (product >= 1).all():
            raise ValueError("a split of length 0")
        rest = np.ceil(extent / product)
        parts = [rest, *lengths] if inner_to_outer else [*lengths, rest]
        stage.loops[number : number + 1] = [Loop(part, loop.annotation) for part in parts]
        stage.splits.append(Split(extent, parts))
