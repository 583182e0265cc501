"""AutoTVM, the log dialect: the JSON lines that TVM wrote until 0.18, and TopHub's, read without TVM.

Two forms of line are known. Version 0.2 (TVM 0.7 and later)::

    {"input": [target, template, args, kwargs], "config": {"index", "code_hash", "entity"}, "result": R,
     "version": 0.2, "tvm_version": "0.10.0"}

and version 0.1::

    {"i": [target, task, args, kwargs, workload, {"i": index, "t": template, "c": hash, "e": entity}], "r": R, "v": 0.1}

``R`` is ``[latencies in seconds, error number, seconds spent, Unix time]`` and an entity a list of knobs
``[name, kind, value]``; kinds are split ``sp``, reorder ``re``, annotate ``an`` and other option ``ot``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from lorien.dialects._lines import Targets, find_logs, is_number, iter_lines, json_object, read_records
from lorien.dialects.base import LogInfo, ReadReport
from lorien.errors import BadInput, UnreadableLog
from lorien.records import Candidate, Json, Measurement, Outcome, TuningRecord, Workload

# AutoTVM writes this latency for a failed measurement.
FAILED_LATENCY_S = 1e9
# autotvm.measure.MeasureErrorNo
_OUTCOMES = {
    0: Outcome.OK,
    1: Outcome.INSTANTIATION_ERROR,
    2: Outcome.BUILD_ERROR,
    3: Outcome.BUILD_ERROR,
    4: Outcome.RUN_ERROR,
    5: Outcome.WRONG_RESULT,
    6: Outcome.BUILD_TIMEOUT,
    7: Outcome.RUN_TIMEOUT,
    8: Outcome.UNKNOWN_ERROR,
}
INT8_LANES = 4  # input channels that one dot-product instruction takes
# Templates whose tile_ic and tile_oc are blocks of channels in memory, and how they lay out weights; those of TVM
# before 0.7 after them.
_LAYOUT_WEIGHTS = {
    "conv2d_NCHWc.x86": "OIHW{i}i{o}o",
    "conv2d_NCHWc_int8.x86": "OIHW{i4}i{o}o4i",
    "depthwise_conv2d_NCHWc.x86": "OIHW1i{o}o",
    "topi_x86_conv2d_NCHWc": "OIHW{i}i{o}o",
    "topi_x86_conv2d_NCHWc_int8": "OIHW{i4}i{o}o4i",
    "topi_x86_depthwise_conv2d_NCHWc_from_nchw": "OIHW1i{o}o",
}
_DTYPE_BYTES = {"float64": 8, "int64": 8, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}


class AutoTvmDialect:
    """Reads AutoTVM logs."""

    name = "autotvm"
    shard_bytes = 1 << 20

    def find(self, path: Path) -> Iterator[Path]:
        """Files that hold an AutoTVM line."""
        yield from find_logs(path, (), _is_record)

    def files(self, log: Path) -> list[Path]:
        """The file itself."""
        return [log]

    def read(
        self, log: Path, info: LogInfo, report: ReadReport, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[TuningRecord]:
        """Stream the records of a log; see ``LogDialect.read``. The index that shards is that of the non-blank line."""
        if not any(_is_record(line) for _, line in iter_lines(log)):
            raise UnreadableLog(
                f"{log} holds no AutoTVM record. Fix: name the dialect that wrote it, or give the log of autotvm tuning"
            )
        yield from read_records(log, self.reader(log, info), report, shard)

    def reader(self, log: Path, info: LogInfo) -> Callable[[bytes], TuningRecord]:
        """See ``LineDialect``."""
        return _Reader(info, str(log)).record


class _Reader:
    """Decodes lines; keeps each workload and target it met, for logs repeat them thousands of times."""

    def __init__(self, info: LogInfo, log: str) -> None:
        self._info = info
        self._log = log
        self._workloads: dict[bytes, Workload] = {}
        self._targets = Targets(info, str)

    def record(self, line: bytes) -> TuningRecord:
        """The record of a line. Raises ``BadInput`` saying what is wrong with it."""
        row = _decode(line)
        try:
            if "input" in row:
                target, template, args, kwargs = row["input"]
                schedule = row["config"]["entity"]
                result, build = row["result"], row.get("tvm_version")
            else:
                target, template, args, kwargs, _, config = row["i"]
                schedule, result, build = config["e"], row["r"], None
                # The old task has several templates, each with knobs of its own.
                if config.get("t") not in (None, "", "direct"):
                    template = f"{template}.{config['t']}"
            latencies_s, error, _, timestamp_s = result
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise BadInput(f"not an AutoTVM record ({type(problem).__name__}: {problem})") from None
        if not isinstance(schedule, list) or not all(
            isinstance(knob, list) and len(knob) == 3 and isinstance(knob[0], str) for knob in schedule
        ):
            raise BadInput("config entity is not a list of [name, kind, value]")
        workload = self._workload(template, args, kwargs)
        return TuningRecord(
            workload=workload,
            target=self._targets(target),
            candidate=Candidate(schedule),
            measurement=measurement_of(latencies_s, error, timestamp_s),
            build=f"tvm {build}" if build else self._info.build,
            network=self._info.network,
            log=self._log,
            variant=layout_of(workload.identity[0], schedule),
        )

    def _workload(self, template: Json, args: Json, kwargs: Json) -> Workload:
        identity = [template, args, kwargs] if kwargs else [template, args]
        text = orjson.dumps(identity)
        if text not in self._workloads:
            self._workloads[text] = workload_of(identity, self._info)
        return self._workloads[text]


def _decode(line: bytes) -> dict[str, Any]:
    row = json_object(line)
    if row is None or not ("input" in row or "i" in row):
        raise BadInput("not an AutoTVM record (no input)")
    return row


def _is_record(line: bytes) -> bool:
    # Ansor's lines have "i" and "r" too, but their input starts with a list, not with the target.
    try:
        row = _decode(line)
    except BadInput:
        return False
    given = row.get("input", row.get("i"))
    return isinstance(given, list) and len(given) >= 4 and isinstance(given[0], str) and ("result" in row or "r" in row)


def measurement_of(latencies_s: Json, error: Json, timestamp_s: Json) -> Measurement:
    """The measurement that a log's result tells of; auto_scheduler writes the same. Raises ``BadInput``."""
    if not isinstance(error, int) or not is_number(timestamp_s):
        raise BadInput(f"error number {error!r} or time {timestamp_s!r} is not a number")
    outcome = _OUTCOMES.get(error, Outcome.UNKNOWN_ERROR)
    if outcome is not Outcome.OK:
        return Measurement(outcome, timestamp_s=timestamp_s)
    if not isinstance(latencies_s, list) or not latencies_s:
        raise BadInput("no latency in a record without error")
    for latency_s in latencies_s:
        if not is_number(latency_s) or not 0 < latency_s < FAILED_LATENCY_S:
            raise BadInput(f"latency {latency_s!r} s in a record without error")
    return Measurement(outcome, tuple(latencies_s), timestamp_s=timestamp_s)


def workload_of(identity: list[Json], info: LogInfo) -> Workload:
    """The workload of ``[template, args]``. Raises ``BadInput`` when these are of other types."""
    template, args = identity[:2]
    if not isinstance(template, str) or not template or not isinstance(args, list):
        raise BadInput(f"template {template!r} or its arguments are missing")
    operator = Operator.of(identity)
    name = f"{template}({_describe(operator, args)})"
    return Workload(
        dialect=AutoTvmDialect.name,
        name=name,
        identity=identity,
        flop=operator.flop if operator else None,
        weight=info.weights.get(name, 1.0),
        networks=(info.network,) if info.network else (),
    )


def layout_of(template: str, schedule: list[Json]) -> str | None:
    """Layouts of input, weights and output that a schedule chooses: ``NCHW8c OIHW8i16o NCHW16c``.

    None where the template does not leave them to the knobs, or the knobs are missing. A graph is laid out by these:
    between two operators whose layouts differ lies a transformation. Source: ``conv2d_alter_op.py`` of TVM's x86.
    """
    if template not in _LAYOUT_WEIGHTS:
        return None
    inner = {knob: value[-1] for knob, kind, value in schedule if kind == "sp" and isinstance(value, list) and value}
    in_block, out_block = inner.get("tile_ic"), inner.get("tile_oc")
    if not (isinstance(in_block, int) and isinstance(out_block, int) and min(in_block, out_block) > 0):
        return None
    weights = _LAYOUT_WEIGHTS[template].format(i=in_block, i4=in_block // INT8_LANES, o=out_block)
    return f"NCHW{in_block}c {weights} NCHW{out_block}c"


def _describe(operator: Operator | None, args: list[Json]) -> str:
    parts = ["x".join(map(str, shape)) for shape, _ in _tensors(args)]
    if operator is None:
        parts += [orjson.dumps(arg).decode() for arg in args if not _is_tensor(arg)]
    elif operator.kind != "gemm":
        pads = operator.padding
        parts.append(f"s{_short(operator.stride)}")
        parts.append(f"p{_short(pads[:2] if pads[:2] == pads[2:] else pads)}")
        if operator.dilation != (1, 1):
            parts.append(f"d{_short(operator.dilation)}")
        if operator.kind == "conv2d" and operator.groups > 1:
            parts.append(f"g{operator.groups}")
    return ", ".join(parts)


def _short(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


@dataclass(frozen=True)
class Operator:
    """The loops of a convolution or matrix multiplication, whatever layout its template takes.

    A matrix multiplication (``kind="gemm"``) is ``y`` rows by ``f`` columns over ``c``, ``n`` of them.

    Parameters
    ----------
    kind : str
        ``conv2d``, ``depthwise`` or ``gemm``.
    n, f, y, x : int
        Extents of the output: batch, channels, height, width.
    c, ry, rx : int
        Extents of the reduction: input channels (of one group), kernel height and width.
    height, width : int
        Of the input without padding.
    padding : tuple of int
        Top, left, bottom, right.
    dtype_bytes : int
        Size of one input element.
    """

    kind: str
    n: int
    f: int
    y: int
    x: int
    c: int
    ry: int = 1
    rx: int = 1
    height: int = 1
    width: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype_bytes: int = 4

    @cached_property
    def flop(self) -> float:
        """Floating-point operations of the direct algorithm; Winograd templates are counted the same, as TVM does."""
        return 2.0 * self.n * self.f * self.y * self.x * self.c * self.ry * self.rx

    @classmethod
    def of(cls, identity: list[Json]) -> Operator | None:
        """The operator of ``[template, args]``; None for templates whose arguments are not known here."""
        template, args = identity[:2]
        name = template.split(".")[0]
        for prefix in ("topi_nn_", "topi_x86_"):
            name = name.removeprefix(prefix)
        try:
            if name.startswith(("conv2d", "group_conv2d", "depthwise_conv2d")):
                if "transpose" in name or "without_weight_transform" in name:
                    return None
                return cls._convolution(name, args)
            if name.startswith(("dense", "batch_matmul")):
                return cls._gemm(name, args)
        except (ArithmeticError, IndexError, TypeError, ValueError):
            return None
        return None

    @classmethod
    def _convolution(cls, name: str, args: list[Json]) -> Operator:
        (data, dtype), (kernel, _) = _tensors(args)[:2]
        depthwise = name.startswith("depthwise")
        if "nhwc" in name:
            n, height, width, channels = data
            ry, rx, _, f = kernel
            if depthwise:
                f = kernel[2] * kernel[3]
        elif len(data) == 5:  # NCHWc: channels in blocks
            n, channels, height, width = data[0], data[1] * data[4], data[2], data[3]
            f, ry, rx = kernel[0] * kernel[5], kernel[2], kernel[3]
        else:
            n, channels, height, width = data
            f, _, ry, rx = kernel
            if depthwise:
                f = kernel[0] * kernel[1]
        stride, padding, dilation = _pair(args[2]), _four(args[3]), _pair(args[4])
        groups = channels if depthwise else int(args[5]) if name.startswith("group") else 1
        operator = cls(
            kind="depthwise" if depthwise else "conv2d",
            n=n,
            f=f,
            y=(height + padding[0] + padding[2] - dilation[0] * (ry - 1) - 1) // stride[0] + 1,
            x=(width + padding[1] + padding[3] - dilation[1] * (rx - 1) - 1) // stride[1] + 1,
            c=channels // groups,
            ry=ry,
            rx=rx,
            height=height,
            width=width,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            dtype_bytes=_DTYPE_BYTES.get(dtype, 4),
        )
        return operator._checked()

    @classmethod
    def _gemm(cls, name: str, args: list[Json]) -> Operator:
        (data, dtype), (weight, _) = _tensors(args)[:2]
        if name.startswith("batch_matmul"):
            n, y, c = data
            f = math.prod(weight[1:]) // c
        else:  # the weight of dense may be packed in blocks of columns
            n, (y, c) = 1, data
            f = math.prod(weight) // c
        return cls("gemm", n=n, f=f, y=y, x=1, c=c, dtype_bytes=_DTYPE_BYTES.get(dtype, 4))._checked()

    def _checked(self) -> Operator:
        if min(self.n, self.f, self.y, self.x, self.c, self.ry, self.rx, *self.stride, *self.dilation) < 1:
            raise ValueError("an extent is less than 1")
        return self


def _is_tensor(arg: Json) -> bool:
    return isinstance(arg, list) and len(arg) == 3 and arg[0] == "TENSOR" and isinstance(arg[1], list)


def _tensors(args: list[Json]) -> list[tuple[list[int], str]]:
    return [(arg[1], arg[2]) for arg in args if _is_tensor(arg)]


def _pair(value: Json) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)


def _four(value: Json) -> tuple[int, int, int, int]:
    if isinstance(value, list) and len(value) == 4:
        top, left, bottom, right = (int(part) for part in value)
        return top, left, bottom, right
    height, width = _pair(value)
    return height, width, height, width
