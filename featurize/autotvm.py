"""Features of AutoTVM schedules: the workload, its knobs on canonical axes, and what the tiling implies.

Every template is seen as one loop nest: output axes ``b`` (the Winograd transform points, or the batch of a matrix
multiplication), ``f`` (output channels), ``y``, ``x``, and reduction axes ``c``, ``ry``, ``rx``. A split knob tiles one
of them; level 0 is its innermost factor. On a GPU an output axis has four levels: block, virtual thread, thread, inner.
A Winograd template multiplies matrices: ``x`` runs over the image tiles and ``y`` is not there.

All records of a batch that have the same template and the same knobs are computed at once, column by column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lorien.dialects.autotvm import AutoTvmDialect, Operator
from lorien.dialects.base import LogInfo, ReadReport
from lorien.featurize.base import Features, batched
from lorien.featurize.schema import Column, FeatureSet
from lorien.records import Candidate, Json, TuningRecord, Workload
from lorien.target import Target

Array = npt.NDArray[np.float64]

OUTPUT_AXES = ("b", "f", "y", "x")
REDUCE_AXES = ("c", "ry", "rx")
LEVELS = 4
OTHER_KNOBS = 16
MAX_FACTOR = 2.0**31
WARP = 32

_SPATIAL = {
    "tile_f": "f",
    "tile_co": "f",
    "tile_oc": "f",
    "tile_y": "y",
    "tile_oh": "y",
    "tile_h": "y",
    "tile_x": "x",
    "tile_ow": "x",
    "tile_w": "x",
    "tile_rc": "c",
    "tile_ic": "c",
    "tile_ci": "c",
    "tile_ry": "ry",
    "tile_rx": "rx",
}
# Which axis a split knob tiles, by kind of template.
_AXIS_OF = {
    "conv2d": _SPATIAL,
    "depthwise": {**_SPATIAL, "tile_c": "f"},
    "winograd": {
        "tile_b": "b",
        "tile_y": "f",
        "tile_k": "f",
        "tile_x": "x",
        "tile_p": "x",
        "tile_rc": "c",
        "tile_c": "c",
    },
    "gemm": {"tile_b": "b", "tile_y": "y", "tile_x": "f", "tile_k": "c"},
    "other": _SPATIAL,
}
_ANNOTATION = {"none": 0.0, "unroll": 1.0, "vec": 2.0}
_WORKLOAD_COLUMNS = {
    "n": ("log2", "batch"),
    "f": ("log2", "output channels"),
    "y": ("log2", "output height, rows of a matrix"),
    "x": ("log2", "output width"),
    "c": ("log2", "input channels of a group, depth of a matrix product"),
    "ry": ("", "kernel height"),
    "rx": ("", "kernel width"),
    "stride": ("", "stride in height"),
    "dilation": ("", "dilation in height"),
    "padding": ("", "padding, all four sides"),
    "flop": ("log2 flop", "operations of the direct algorithm"),
    "in_bytes": ("log2 B", "input"),
    "weight_bytes": ("log2 B", "weight"),
    "out_bytes": ("log2 B", "output"),
    "intensity": ("log2 flop/B", "operations per byte of input, weight and output"),
    "f_pow2": ("log2", "largest power of two that divides f"),
    "y_pow2": ("log2", "largest power of two that divides y"),
    "x_pow2": ("log2", "largest power of two that divides x"),
    "c_pow2": ("log2", "largest power of two that divides c"),
}


def _columns() -> Iterator[Column]:
    for kind in ("depthwise", "winograd", "gemm", "packed", "gpu"):
        yield Column(f"is_{kind}", "0 or 1", f"the template is {kind}")
    for name, (unit, meaning) in _WORKLOAD_COLUMNS.items():
        yield Column(f"w_{name}", unit, f"workload: {meaning}")
    for axis in OUTPUT_AXES:
        for level in range(LEVELS - 1):
            yield Column(f"{axis}_{level}", "log2", f"tile factor of axis {axis}, level {level} from the innermost")
        yield Column(f"{axis}_out", "log2", f"outermost extent of axis {axis}")
        yield Column(f"{axis}_tile", "log2", f"product of the factors of axis {axis} but the outermost")
    for axis in REDUCE_AXES:
        yield Column(f"{axis}_0", "log2", f"innermost tile factor of axis {axis}")
        yield Column(f"{axis}_out", "log2", f"outermost extent of axis {axis}")
    yield Column("unroll_step", "log2(1+steps)", "auto_unroll_max_step")
    yield Column("unroll_explicit", "0 or 1", "unroll_explicit")
    yield Column("unroll_kw", "0 or 1", "unroll_kw")
    yield Column("reorder_last", "", "which loop the first reorder knob puts innermost, by its number")
    for position in range(2):
        yield Column(f"ann_reduce_{position}", "0 none, 1 unroll, 2 vec", f"annotation of reduction loop {position}")
    for position in range(3):
        yield Column(f"ann_{position}", "0 none, 1 unroll, 2 vec", f"annotation of spatial loop {position}")
    yield Column("inner_tile", "log2 elements", "output elements of the innermost tile")
    yield Column("reg_tile", "log2 elements", "output elements held by one thread")
    yield Column("block_tile", "log2 elements", "output elements of one block (GPU) or tile (CPU)")
    yield Column("red_chunk", "log2", "reduction steps between two loads of the tiles")
    yield Column("red_steps", "log2", "loads of the tiles in one block")
    yield Column("in_tile", "log2 B", "input touched by one tile and chunk")
    yield Column("weight_tile", "log2 B", "weight touched by one tile and chunk")
    yield Column("out_tile", "log2 B", "output touched by one tile")
    yield Column("footprint", "log2 B", "input, weight and output touched by one tile and chunk")
    yield Column("shared", "log2 B", "shared memory of a block: input and weight")
    yield Column("tile_intensity", "log2 flop/B", "operations per byte of input and weight of one tile and chunk")
    yield Column("reg_reuse", "log2", "multiply-adds per element that the innermost tile loads")
    yield Column("traffic", "log2", "bytes that all tiles load over those of input, weight and output")
    yield Column("waste", "log2", "iterations over those needed, where factors do not divide extents")
    yield Column("blocks", "log2", "blocks (GPU), outer iterations (CPU)")
    yield Column("threads", "log2", "threads in a block")
    yield Column("threads_x", "log2", "threads in a block along x")
    yield Column("vthreads", "log2", "virtual threads")
    yield Column("warp_use", "fraction", "threads over lanes of the warps they take")
    yield Column("in_loads", "log2", "input elements each thread loads for one chunk")
    yield Column("weight_loads", "log2", "weight elements each thread loads for one chunk")
    yield Column("body", "log2", "multiply-adds of a thread in one chunk: what unrolling would lay out")
    yield Column("body_over_unroll", "log2", "body over auto_unroll_max_step")
    yield Column("parallel", "log2", "iterations shared out to the cores (CPU)")
    yield Column("parallel_use4", "fraction", "use of four cores by the parallel iterations")
    yield Column("vec", "elements", "length of the vectorised loop (CPU); 1 when there is none")
    for lanes in (4, 8, 16):
        yield Column(f"vec_use{lanes}", "fraction", f"use of vectors of {lanes} elements")
    yield Column("vec_registers4", "log2", "accumulators of the innermost tile in vectors of 4 elements")
    yield Column("vec_registers8", "log2", "accumulators of the innermost tile in vectors of 8 elements")
    yield Column("unrolled", "log2", "product of the loops annotated unroll")
    yield Column("c_over_f", "log2", "inner channels of the input over those of the output")
    for position in range(OTHER_KNOBS):
        yield Column(f"other_{position}", "log2 or code", f"value {position} of the knobs no column above takes")


FEATURES = FeatureSet("autotvm", 1, tuple(_columns()))
_INDEX = {name: index for index, name in enumerate(FEATURES.names)}
_Key = tuple[str, tuple[tuple[str, str, int], ...]]


class AutoTvmExtractor:
    """Feature set ``autotvm``; NaN where a feature has no meaning for the template."""

    dialect = AutoTvmDialect.name
    features = FEATURES

    def __init__(self) -> None:
        self._operators: dict[str, Operator | None] = {}

    def extract_log(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int], batch_rows: int
    ) -> Iterator[tuple[list[TuningRecord], Features]]:
        """Stream a log; see ``FeatureExtractor.extract_log``."""
        for batch in batched(AutoTvmDialect().read(log, info, report, shard), batch_rows):
            rows, problems = self._rows([(record.workload, record.candidate.schedule) for record in batch])
            for index, reason in problems.items():
                report.bad(log.name, f"{batch[index].workload.name}: {reason}")
            if problems:
                kept = [index for index in range(len(batch)) if index not in problems]
                batch, rows = [batch[index] for index in kept], rows[kept]
            if batch:
                yield batch, rows

    def extract(self, workload: Workload, candidates: Sequence[Candidate], target: Target) -> Features:
        """Rows in the order given; see ``FeatureExtractor.extract``."""
        return self._rows([(workload, candidate.schedule) for candidate in candidates])[0]

    def _rows(self, pairs: Sequence[tuple[Workload, Json]]) -> tuple[Features, dict[int, str]]:
        rows = np.full((len(pairs), len(FEATURES.columns)), np.nan, dtype=np.float32)
        problems: dict[int, str] = {}
        groups: dict[_Key, list[int]] = {}
        for index, (workload, schedule) in enumerate(pairs):
            try:
                knobs = tuple([(name, kind, len(v) if isinstance(v, list) else 0) for name, kind, v in schedule])
                groups.setdefault((workload.identity[0], knobs), []).append(index)
            except (TypeError, ValueError):
                problems[index] = "the schedule is not a list of [name, kind, value]"
        for (template, knobs), indices in groups.items():
            try:
                self._fill(rows, template, knobs, indices, pairs)
            except (TypeError, ValueError, OverflowError):
                # One bad value spoils its group: find it.
                for index in indices:
                    try:
                        self._fill(rows, template, knobs, [index], pairs)
                    except (TypeError, ValueError, OverflowError) as error:
                        problems[index] = f"bad knob value ({error})"
        return rows, problems

    def _fill(
        self,
        rows: Features,
        template: str,
        knobs: tuple[tuple[str, str, int], ...],
        indices: list[int],
        pairs: Sequence[tuple[Workload, Json]],
    ) -> None:
        operators = [self._operator(pairs[index][0]) for index in indices]
        schedules = [pairs[index][1] for index in indices]
        values = {
            name: _values(kind, [schedule[position][2] for schedule in schedules])
            for position, (name, kind, _) in enumerate(knobs)
        }
        found = _Nest(template, operators, {name: kind for name, kind, _ in knobs}, values).columns()
        block = np.stack([np.broadcast_to(column, len(indices)) for column in found.values()], axis=1)
        rows[np.ix_(indices, [_INDEX[name] for name in found])] = block

    def _operator(self, workload: Workload) -> Operator | None:
        if workload.name not in self._operators:
            self._operators[workload.name] = Operator.of(workload.identity)
        return self._operators[workload.name]


def _values(kind: str, values: list[Json]) -> Array:
    """Knob values as numbers (records, parts). Raises ``ValueError`` or ``TypeError`` on what the kind does not hold."""
    if kind == "an":
        return np.array([[_ANNOTATION.get(part, np.nan) for part in value] for value in values], dtype=np.float64)
    if kind == "ot":
        numbers = [float(value) if isinstance(value, (int, float)) else np.nan for value in values]
        if any(abs(number) >= MAX_FACTOR for number in numbers):
            raise ValueError("option out of range")
        return np.array(numbers)[:, None]
    array = np.array(values, dtype=np.float64)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{kind} is not a list of numbers")
    if kind == "sp" and not ((array[:, 1:] >= 1) & (array[:, 1:] < MAX_FACTOR)).all():
        raise ValueError("split factor out of range")
    return array


def _kind(template: str, operator: Operator | None) -> str:
    if "winograd" in template:
        return "winograd"
    return operator.kind if operator else "other"


def _pow2(extent: Array) -> Array:
    whole = extent.astype(np.int64)
    return np.log2((whole & -whole).astype(np.float64))


class _Nest:
    """The loop nest of one template with one list of knobs, over many records; every array is (records,)."""

    def __init__(
        self, template: str, operators: list[Operator | None], kinds: dict[str, str], values: dict[str, Array]
    ) -> None:
        self._template = template
        self._knob_kinds = kinds
        self._values = values
        self._kind = _kind(template, operators[0])
        known = [operator for operator in operators if operator is not None]
        self._op = _table(known) if len(known) == len(operators) else {}
        self._extent = self._extents()
        self._levels: dict[str, Array] = {}
        used = set()
        for name, axis in _AXIS_OF[self._kind].items():
            if name in values:
                self._levels[axis] = self._split(axis, kinds[name], values[name])
                used.add(name)
        self._others = [name for name in values if name not in used]
        self._gpu = any(levels.shape[1] >= LEVELS for levels in self._levels.values())

    def _extents(self) -> dict[str, Array]:
        op = self._op
        if not op:
            return {}
        if self._kind != "winograd":
            extents = {axis: op[axis] for axis in ("f", "y", "x", "c", "ry", "rx")}
            extents["b"] = op["n"]
            if self._kind == "depthwise":
                extents["c"] = op["f"]  # the packed templates block the input channels too
            return extents
        # TVM's choice of the output tile: 4 where the input height is a multiple of 8 (GPU), 4 on a CPU.
        on_cpu = self._template.endswith("arm_cpu")
        size = np.where(on_cpu | (op["height"] % 8 == 0), 4.0, 2.0)
        tiles = op["n"] * np.ceil(op["y"] / size) * np.ceil(op["x"] / size)
        return {"b": (size + op["ry"] - 1) ** 2, "f": op["f"], "x": tiles, "c": op["c"]}

    def _split(self, axis: str, kind: str, factors: Array) -> Array:
        """Tile factors of an axis (records, levels), innermost first; the outermost follows from the extent."""
        if kind == "ot":  # tile_oh of the packed 1x1 convolution is an option, not a split
            factors = np.column_stack([np.full(len(factors), -1.0), factors])
        inner = factors[:, :0:-1]
        outer = factors[:, 0]
        if axis in self._extent:
            outer = np.where(outer < 1, np.ceil(self._extent[axis] / inner.prod(axis=1)), outer)
        else:
            outer = np.where(outer < 1, np.nan, outer)
        return np.column_stack([inner, outer])

    def _inner(self, axis: str, level: int = 0) -> Array | float:
        """Factor of an axis at an inner level; 1 where the axis is not split that deep."""
        levels = self._levels.get(axis)
        return 1.0 if levels is None or level >= levels.shape[1] - 1 else levels[:, level]

    def _tile(self, axis: str) -> Array | float:
        levels = self._levels.get(axis)
        return 1.0 if levels is None else levels[:, :-1].prod(axis=1)

    def _outer(self, axis: str) -> Array | float:
        if axis in self._levels:
            return self._levels[axis][:, -1]
        return self._extent.get(axis, 1.0)

    def columns(self) -> dict[str, Array | float]:
        """Every feature that has a meaning here, by column name."""
        found: dict[str, Array | float] = {
            "is_depthwise": float(self._kind == "depthwise"),
            "is_winograd": float(self._kind == "winograd"),
            "is_gemm": float(self._kind == "gemm"),
            "is_packed": float("NCHWc" in self._template),
            "is_gpu": float(self._gpu),
        }
        found.update(self._knobs())
        if self._op:
            found.update(self._workload())
            found.update(self._tiles())
        return found

    def _workload(self) -> dict[str, Array | float]:
        op = self._op
        in_bytes = op["dtype_bytes"] * op["n"] * op["groups"] * op["c"] * op["height"] * op["width"]
        if self._kind == "gemm":
            in_bytes = op["dtype_bytes"] * op["n"] * op["y"] * op["c"]
        weight_bytes = op["dtype_bytes"] * op["f"] * op["c"] * op["ry"] * op["rx"]
        out_bytes = op["dtype_bytes"] * op["n"] * op["f"] * op["y"] * op["x"]
        self._bytes = in_bytes + weight_bytes + out_bytes
        found: dict[str, Array | float] = {f"w_{axis}": np.log2(op[axis]) for axis in ("n", "f", "y", "x", "c")}
        found.update({f"w_{name}": op[name] for name in ("ry", "rx", "stride", "dilation", "padding")})
        found.update({f"w_{axis}_pow2": _pow2(op[axis]) for axis in ("f", "y", "x", "c")})
        found["w_flop"] = np.log2(op["flop"])
        found["w_in_bytes"] = np.log2(in_bytes)
        found["w_weight_bytes"] = np.log2(weight_bytes)
        found["w_out_bytes"] = np.log2(out_bytes)
        found["w_intensity"] = np.log2(op["flop"] / self._bytes)
        return found

    def _knobs(self) -> dict[str, Array | float]:
        found: dict[str, Array | float] = {}
        for axis, levels in self._levels.items():
            depth = 1 if axis in REDUCE_AXES else LEVELS - 1
            for level in range(min(depth, levels.shape[1] - 1)):
                found[f"{axis}_{level}"] = np.log2(levels[:, level])
            found[f"{axis}_out"] = np.log2(levels[:, -1])
            if axis in OUTPUT_AXES:
                found[f"{axis}_tile"] = np.log2(self._tile(axis))
        position = 0
        for name in self._others:
            kind, values = self._knob_kinds[name], self._values[name]
            if name == "auto_unroll_max_step":
                found["unroll_step"] = np.log2(1 + np.maximum(values[:, 0], 0))
            elif name in ("unroll_explicit", "unroll_kw"):
                found[name] = values[:, 0]
            elif kind == "re" and "reorder_last" not in found:
                found["reorder_last"] = values[:, -1]
            elif kind == "an":
                prefix, count = ("ann_reduce", 2) if "reduce" in name else ("ann", 3)
                found.update({f"{prefix}_{i}": column for i, column in enumerate(values.T[:count])})
            else:
                for column in values.T[: OTHER_KNOBS - position]:
                    numbers = np.log2(np.maximum(column, 1)) if kind == "sp" else column
                    found[f"other_{position}"] = numbers
                    position += 1
        return found

    def _tiles(self) -> dict[str, Array | float]:
        op, bytes_ = self._op, self._op["dtype_bytes"]
        tile = {axis: self._tile(axis) for axis in OUTPUT_AXES}
        reg = {axis: self._inner(axis) * (self._inner(axis, 2) if self._gpu else 1.0) for axis in OUTPUT_AXES}
        out = _product(tile.values())
        # Kernel loops that no knob splits run inside a chunk, channels outside.
        red_c = self._inner("c")
        red_y = self._inner("ry") if "ry" in self._levels else op["ry"]
        red_x = self._inner("rx") if "rx" in self._levels else op["rx"]
        if self._kind in ("winograd", "gemm"):
            red_y = red_x = 1.0
            columns = tile["x"] if self._kind == "winograd" else tile["y"]
            in_tile = tile["b"] * red_c * columns
            weight_tile = tile["b"] * tile["f"] * red_c
            rows, cols = reg["f"], reg["x"] * reg["y"]
        else:
            height = (tile["y"] - 1) * op["stride"] + (red_y - 1) * op["dilation"] + 1
            width = (tile["x"] - 1) * op["stride_x"] + (red_x - 1) * op["dilation_x"] + 1
            if self._kind == "depthwise":
                red_c = 1.0
                in_tile, weight_tile = tile["f"] * height * width, tile["f"] * red_y * red_x
            else:
                in_tile, weight_tile = red_c * height * width, tile["f"] * red_c * red_y * red_x
            rows, cols = reg["f"], reg["x"] * reg["y"]
        chunk = red_c * red_y * red_x
        reduce_axes = ("ry", "rx") if self._kind == "depthwise" else REDUCE_AXES
        steps = _product(self._outer(axis) for axis in reduce_axes if axis == "c" or axis in self._levels)
        blocks = _product(self._outer(axis) for axis in OUTPUT_AXES)
        reg_tile = _product(reg.values())
        loads = bytes_ * (in_tile + weight_tile)
        waste: Array | float = 1.0
        for axis, levels in self._levels.items():
            waste = waste * levels.prod(axis=1) / self._extent[axis]
        logs: dict[str, Array | float] = {
            "inner_tile": _product(self._inner(axis) for axis in OUTPUT_AXES),
            "reg_tile": reg_tile,
            "block_tile": out,
            "red_chunk": chunk,
            "red_steps": steps,
            "in_tile": bytes_ * in_tile,
            "weight_tile": bytes_ * weight_tile,
            "out_tile": bytes_ * out,
            "footprint": loads + bytes_ * out,
            "tile_intensity": 2 * out * chunk / loads,
            "reg_reuse": rows * cols / (rows + cols),
            "traffic": blocks * steps * loads / self._bytes,
            "waste": waste,
            "blocks": blocks,
            "c_over_f": self._inner("c") / self._inner("f"),
        }
        found: dict[str, Array | float] = {}
        if self._gpu:
            threads = _product(self._inner(axis, 1) for axis in OUTPUT_AXES)
            body = reg_tile * chunk
            logs["shared"] = loads
            logs["threads"] = threads
            logs["threads_x"] = self._inner("x", 1)
            logs["vthreads"] = _product(self._inner(axis, 2) for axis in OUTPUT_AXES)
            logs["in_loads"] = np.ceil(in_tile / threads)
            logs["weight_loads"] = np.ceil(weight_tile / threads)
            logs["body"] = body
            if "auto_unroll_max_step" in self._values:
                logs["body_over_unroll"] = body / (1 + np.maximum(self._values["auto_unroll_max_step"][:, 0], 0))
            found["warp_use"] = threads / (WARP * np.ceil(threads / WARP))
        else:
            found.update(self._cpu(logs))
        found.update({name: np.log2(value) for name, value in logs.items()})
        return found

    def _cpu(self, logs: dict[str, Array | float]) -> dict[str, Array | float]:
        packed = "NCHWc" in self._template
        spatial = next((v for n, v in self._values.items() if self._knob_kinds[n] == "an" and "reduce" not in n), None)
        axes = (
            ("f", "x") if self._kind == "winograd" else ("y", "x", "f") if self._kind == "conv2d" else ("f", "y", "x")
        )
        vec: Array | float = self._inner("f") if packed else 1.0
        unrolled: Array | float = 1.0
        if spatial is not None:
            for axis, mark in zip(axes, spatial.T, strict=False):
                vec = np.where(mark == _ANNOTATION["vec"], self._inner(axis), vec)
                unrolled = unrolled * np.where(mark == _ANNOTATION["unroll"], self._inner(axis), 1.0)
        parallel = self._op["n"] * self._outer("f")
        if packed:
            parallel = parallel * self._outer("y")
        inner = logs["inner_tile"]
        logs["parallel"] = parallel
        logs["unrolled"] = unrolled
        logs["vec_registers4"] = inner / vec * np.ceil(vec / 4)
        logs["vec_registers8"] = inner / vec * np.ceil(vec / 8)
        found: dict[str, Array | float] = {"vec": vec, "parallel_use4": parallel / (4 * np.ceil(parallel / 4))}
        found.update({f"vec_use{lanes}": vec / (lanes * np.ceil(vec / lanes)) for lanes in (4, 8, 16)})
        return found


def _product(values: object) -> Array | float:
    result: Array | float = 1.0
    for value in values:  # type: ignore[attr-defined]
        result = result * value
    return result


def _table(operators: list[Operator]) -> dict[str, Array]:
    """The operators' numbers as arrays (records,)."""
    numbers = np.array([_numbers(operator) for operator in operators], dtype=np.float64)
    return dict(zip(_NUMBERS, numbers.T, strict=True))


_NUMBERS = (
    "n", "f", "y", "x", "c", "ry", "rx", "height", "width", "groups", "dtype_bytes",
    "stride", "stride_x", "dilation", "dilation_x", "padding", "flop",
)  # fmt: skip


def _numbers(op: Operator) -> tuple[float, ...]:
    return (
        op.n, op.f, op.y, op.x, op.c, op.ry, op.rx, op.height, op.width, op.groups, op.dtype_bytes,
        *op.stride, *op.dilation, sum(op.padding), op.flop,
    )  # fmt: skip
