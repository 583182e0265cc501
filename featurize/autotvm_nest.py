"""The loop nest that an AutoTVM template and its knobs make, over many records at once.

Every template is seen as one nest: output axes ``b`` (the transform points of Winograd, or the batch), ``f`` (output
channels), ``y``, ``x``, and reduction axes ``c``, ``ry``, ``rx``. A split knob tiles one of them; level 0 is its
innermost factor. On a GPU an output axis has four levels: block, virtual thread, thread, inner. A Winograd template
multiplies matrices: ``x`` runs over the image tiles, there is no ``y``. A ``gemm`` has rows ``y`` and columns ``f``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lorien.dialects.autotvm import Operator
from lorien.records import Json

Array = npt.NDArray[np.float64]

OUTPUT_AXES = ("b", "f", "y", "x")
REDUCE_AXES = ("c", "ry", "rx")
GPU_LEVELS = 4
OTHER_KNOBS = 16
UNROLL, VECTORIZE = 1.0, 2.0
# Factors beyond this are no tiles; below it no product overflows.
MAX_NUMBER = 2.0**31

WARP = 32
# Of a multiprocessor, the same for every GPU: the model of a target learns what its own limits are.
SM_THREADS, SM_BLOCKS, SM_REGISTERS, SM_SHARED_BYTES = 2048, 16, 65536, 98304
THREAD_REGISTERS = 32  # beside the accumulators

_ANNOTATIONS = {"none": 0.0, "unroll": UNROLL, "vec": VECTORIZE}
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
# Which axis a knob tiles, by kind of template.
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
# The axes that the spatial annotation of a CPU template marks, in its order.
_ANNOTATED = {"conv2d": ("y", "x", "f"), "depthwise": ("f", "y", "x"), "winograd": ("f", "x")}
_NUMBERS = ("n", "f", "y", "x", "c", "ry", "rx", "height", "width", "groups", "dtype_bytes", "flop")


@dataclass(frozen=True)
class Knob:
    """One knob over all records: its kind and its values (records, parts)."""

    kind: str
    values: Array

    @classmethod
    def parse(cls, kind: str, values: Sequence[Json]) -> Knob:
        """Read the knob's JSON values. Raises ``ValueError``, ``TypeError`` or ``OverflowError`` on a wrong one."""
        if kind == "an":
            return cls(kind, np.array([[_ANNOTATIONS.get(part, np.nan) for part in value] for value in values]))
        if kind == "ot":
            values = [[float(value) if isinstance(value, (int, float)) else np.nan] for value in values]
        array = np.array(values, dtype=np.float64)
        if array.ndim != 2 or not array.shape[1]:
            raise ValueError(f"{kind} is not a list of numbers")
        if (np.abs(array) >= MAX_NUMBER).any() or (kind == "sp" and not (array[:, 1:] >= 1).all()):
            raise ValueError(f"{kind} is out of range")
        return cls(kind, array)


class Nest:
    """The loop nest of one template with one list of knobs.

    Parameters
    ----------
    template : str
        Name of the template.
    operators : list of Operator
        One per record; empty when the template's arguments are not understood.
    knobs : mapping of str to Knob
        By name, in the order of the schedule.
    count : int
        Number of records.
    """

    def __init__(self, template: str, operators: list[Operator], knobs: Mapping[str, Knob], count: int) -> None:
        self._ones: Array = np.ones(count)
        self._knobs = knobs
        self._packed = "NCHWc" in template
        self._on_cpu = template.endswith(("x86", "arm_cpu"))
        self._op = _table(operators) if operators else {}
        kind = operators[0].kind if operators else "other"
        self._kind = "winograd" if operators and "winograd" in template else kind
        self._extent = self._extents()
        axis_of = _AXIS_OF[self._kind]
        self._tiling = {
            name: axis_of[name] for name, knob in knobs.items() if name in axis_of and knob.kind in ("sp", "ot")
        }
        self._levels = {axis: self._split(axis, knobs[name]) for name, axis in self._tiling.items()}
        self._gpu = any(levels.shape[1] >= GPU_LEVELS for levels in self._levels.values())

    def columns(self) -> dict[str, Array]:
        """Every feature that has a meaning here, by column name; (records,)."""
        found = {f"is_{kind}": self._ones * (self._kind == kind) for kind in ("depthwise", "winograd", "gemm")}
        found["is_packed"] = self._ones * self._packed
        found["is_gpu"] = self._ones * self._gpu
        found.update(self._factors())
        found.update(self._options())
        if self._op:
            found.update(self._workload())
            tiles = self._tiles()
            found.update(self._threads(tiles) if self._gpu else self._vectors(tiles))
            found.update({name: np.log2(value) for name, value in tiles.items()})
        return found

    def _extents(self) -> dict[str, Array]:
        op = self._op
        if not op:
            return {}
        if self._kind != "winograd":
            # The packed depthwise templates block the input channels too, which are as many as the groups.
            channels = op["groups"] if self._kind == "depthwise" else op["c"]
            return {
                "b": op["n"],
                "f": op["f"],
                "y": op["y"],
                "x": op["x"],
                "c": channels,
                "ry": op["ry"],
                "rx": op["rx"],
            }
        # TVM makes 4x4 outputs at a time on a CPU; on a GPU only where the input height is a multiple of 8.
        size = np.where(self._on_cpu | (op["height"] % 8 == 0), 4.0, 2.0)
        tiles = op["n"] * np.ceil(op["y"] / size) * np.ceil(op["x"] / size)
        return {"b": (size + op["ry"] - 1) ** 2, "f": op["f"], "x": tiles, "c": op["c"]}

    def _split(self, axis: str, knob: Knob) -> Array:
        """Factors of an axis (records, levels), innermost first; the outermost follows from the extent."""
        factors = knob.values
        if knob.kind == "ot":  # tile_oh of the packed 1x1 convolution
            factors = np.column_stack([np.full(len(factors), -1.0), np.maximum(factors, 1)])
        inner, outer = factors[:, :0:-1], factors[:, 0]
        extent = self._extent.get(axis, np.full(len(factors), np.nan))
        # -1 stands for what is left; version 0.1 wrote it out.
        outer = np.where(outer >= 1, outer, np.ceil(extent / inner.prod(axis=1)))
        return np.column_stack([inner, outer])

    def _inner(self, axis: str, level: int = 0) -> Array:
        """Factor of an axis at an inner level; 1 where it is not split that deep."""
        levels = self._levels.get(axis)
        return self._ones if levels is None or level >= levels.shape[1] - 1 else levels[:, level]

    def _tile(self, axis: str) -> Array:
        """Product of all factors but the outermost."""
        return self._levels[axis][:, :-1].prod(axis=1) if axis in self._levels else self._ones

    def _outer(self, axis: str) -> Array:
        return self._levels[axis][:, -1] if axis in self._levels else self._extent.get(axis, self._ones)

    def _product(self, factors: Iterable[Array]) -> Array:
        product: Array = np.prod([self._ones, *factors], axis=0)
        return product

    def _factors(self) -> dict[str, Array]:
        found = {}
        for axis, levels in self._levels.items():
            depth = 1 if axis in REDUCE_AXES else GPU_LEVELS - 1
            for level in range(min(depth, levels.shape[1] - 1)):
                found[f"{axis}_{level}"] = np.log2(levels[:, level])
            found[f"{axis}_out"] = np.log2(levels[:, -1])
            if axis in OUTPUT_AXES:
                found[f"{axis}_tile"] = np.log2(self._tile(axis))
        return found

    def _options(self) -> dict[str, Array]:
        """The knobs that tile no axis."""
        found: dict[str, Array] = {}
        others: list[Array] = []
        for name, knob in self._knobs.items():
            values = knob.values
            if name in self._tiling:
                continue
            if name == "auto_unroll_max_step":
                found["unroll_step"] = np.log2(self._unroll_step)
            elif name in ("unroll_explicit", "unroll_kw"):
                found[name] = values[:, 0]
            elif knob.kind == "re" and "reorder_last" not in found:
                found["reorder_last"] = values[:, -1]
            elif knob.kind == "an":
                prefix, count = ("ann_reduce", 2) if "reduce" in name else ("ann", 3)
                found.update({f"{prefix}_{index}": column for index, column in enumerate(values.T[:count])})
            else:
                others += list(np.log2(np.maximum(values, 1)).T if knob.kind == "sp" else values.T)
        found.update({f"other_{index}": column for index, column in enumerate(others[:OTHER_KNOBS])})
        return found

    @property
    def _unroll_step(self) -> Array:
        return 1 + np.maximum(self._knobs["auto_unroll_max_step"].values[:, 0], 0)

    def _workload(self) -> dict[str, Array]:
        op = self._op
        found = {f"w_{axis}": np.log2(op[axis]) for axis in ("n", "f", "y", "x", "c")}
        found.update({f"w_{name}": op[name] for name in ("ry", "rx", "stride", "dilation", "padding")})
        found.update({f"w_{axis}_pow2": _pow2(op[axis]) for axis in ("f", "y", "x", "c")})
        found["w_intensity"] = np.log2(op["flop"] / self._bytes)
        return found

    @cached_property
    def _bytes(self) -> Array:
        """Bytes of input, weight and output together."""
        op = self._op
        pixels = op["y"] if self._kind == "gemm" else op["groups"] * op["height"] * op["width"]
        copies = op["n"] if self._kind == "gemm" else self._ones
        elements = op["n"] * op["c"] * pixels + op["n"] * op["f"] * op["y"] * op["x"]
        return op["dtype_bytes"] * (elements + copies * op["f"] * op["c"] * op["ry"] * op["rx"])

    def _tiles(self) -> dict[str, Array]:
        """What one tile of the output, and one chunk of its reduction, touch and reuse."""
        op, size = self._op, self._op["dtype_bytes"]
        tile = {axis: self._tile(axis) for axis in OUTPUT_AXES}
        # Kernel loops that no knob splits run inside a chunk, channels outside.
        red = {"c": self._inner("c"), "ry": op["ry"], "rx": op["rx"]}
        red.update({axis: self._inner(axis) for axis in ("ry", "rx") if axis in self._levels})
        if self._kind in ("winograd", "gemm"):
            red["ry"] = red["rx"] = self._ones
            pixels = tile["x"] * tile["y"]
        else:
            height = (tile["y"] - 1) * op["stride"] + (red["ry"] - 1) * op["dilation"] + 1
            width = (tile["x"] - 1) * op["stride_x"] + (red["rx"] - 1) * op["dilation_x"] + 1
            pixels = height * width
        channels = red["c"]
        if self._kind == "depthwise":
            red["c"], channels = self._ones, tile["f"]
        chunk, out = self._product(red.values()), self._product(tile.values())
        in_tile, weight_tile = tile["b"] * channels * pixels, tile["b"] * tile["f"] * chunk
        steps = self._product(self._outer(axis) for axis in REDUCE_AXES if axis in self._levels)
        if self._kind == "depthwise":
            steps = self._ones
        elif "c" not in self._levels:
            steps = steps * op["c"]
        blocks = self._product(self._outer(axis) for axis in OUTPUT_AXES)
        loads = size * (in_tile + weight_tile)
        # A thread keeps in registers what its virtual threads (level 2) compute too.
        held = {axis: self._inner(axis) * (self._inner(axis, 2) if self._gpu else 1.0) for axis in OUTPUT_AXES}
        rows, columns = held["f"], held["y"] * held["x"]
        return {
            "inner_tile": self._product(self._inner(axis) for axis in OUTPUT_AXES),
            "reg_tile": self._product(held.values()),
            "block_tile": out,
            "red_chunk": chunk,
            "red_steps": steps,
            "in_tile": size * in_tile,
            "weight_tile": size * weight_tile,
            "out_tile": size * out,
            "footprint": loads + size * out,
            "in_full": size * in_tile * steps,
            "weight_full": size * weight_tile * steps,
            "tile_intensity": 2 * out * chunk / loads,
            "reg_reuse": rows * columns / (rows + columns),
            "traffic": blocks * steps * loads / self._bytes,
            "waste": self._product(levels.prod(axis=1) / self._extent[axis] for axis, levels in self._levels.items()),
            "blocks": blocks,
            "c_over_f": self._inner("c") / self._inner("f"),
        }

    def _threads(self, tiles: dict[str, Array]) -> dict[str, Array]:
        """GPU: adds its logarithmic columns to ``tiles`` and returns the others."""
        size = self._op["dtype_bytes"]
        threads = self._product(self._inner(axis, 1) for axis in OUTPUT_AXES)
        warps = np.ceil(threads / WARP)
        shared = tiles["in_tile"] + tiles["weight_tile"]
        registers = tiles["reg_tile"] + THREAD_REGISTERS
        limits = [SM_THREADS / (warps * WARP), SM_REGISTERS / (warps * WARP * registers), SM_SHARED_BYTES / shared]
        # Half a block stands for one that does not fit.
        resident = np.clip(np.floor(np.min(limits, axis=0)), 0.5, SM_BLOCKS)
        tiles["shared"] = shared
        tiles["threads"] = threads
        tiles["threads_x"] = self._inner("x", 1)
        tiles["vthreads"] = self._product(self._inner(axis, 2) for axis in OUTPUT_AXES)
        tiles["in_loads"] = np.ceil(tiles["in_tile"] / size / threads)
        tiles["weight_loads"] = np.ceil(tiles["weight_tile"] / size / threads)
        tiles["body"] = tiles["reg_tile"] * tiles["red_chunk"]
        tiles["thread_work"] = tiles["body"] * tiles["red_steps"]
        tiles["resident_threads"] = resident * threads
        tiles["waves"] = tiles["blocks"] / resident
        if "auto_unroll_max_step" in self._knobs:
            tiles["body_over_unroll"] = tiles["body"] / self._unroll_step
        return {"warp_use": threads / (WARP * warps)}

    def _vectors(self, tiles: dict[str, Array]) -> dict[str, Array]:
        """CPU: adds its logarithmic columns to ``tiles`` and returns the others."""
        vec = self._inner("f") if self._packed else self._ones
        unrolled = self._ones
        marks = next((k.values for name, k in self._knobs.items() if k.kind == "an" and "reduce" not in name), None)
        if marks is not None:
            for axis, mark in zip(_ANNOTATED.get(self._kind, ()), marks.T, strict=False):
                vec = np.where(mark == VECTORIZE, self._inner(axis), vec)
                unrolled = unrolled * np.where(mark == UNROLL, self._inner(axis), 1.0)
        parallel = self._op["n"] * self._outer("f") * (self._outer("y") if self._packed else 1.0)
        tiles["parallel"] = parallel
        tiles["unrolled"] = unrolled
        for lanes in (4, 8):
            tiles[f"vec_registers{lanes}"] = tiles["inner_tile"] / vec * np.ceil(vec / lanes)
        found = {f"vec_use{lanes}": vec / (lanes * np.ceil(vec / lanes)) for lanes in (4, 8, 16)}
        return found | {"vec": vec, "parallel_use4": parallel / (4 * np.ceil(parallel / 4))}


def _pow2(extent: Array) -> Array:
    """Logarithm of the largest power of two that divides an extent."""
    whole = extent.astype(np.int64)
    return np.log2((whole & -whole).astype(np.float64))


def _table(operators: list[Operator]) -> dict[str, Array]:
    """The numbers of the operators, each (records,)."""
    distinct = {id(operator): operator for operator in operators}
    place = {key: index for index, key in enumerate(distinct)}
    which = [place[id(operator)] for operator in operators]
    numbers = [
        [*(getattr(op, name) for name in _NUMBERS), *op.stride, *op.dilation, sum(op.padding)]
        for op in distinct.values()
    ]
    names = (*_NUMBERS, "stride", "stride_x", "dilation", "dilation_x", "padding")
    return dict(zip(names, np.array(numbers, dtype=np.float64)[which].T, strict=True))
