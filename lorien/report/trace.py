"""A schedule as lines for people, in the words of its framework."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from lorien.records import Json

MAX_CHARS = 12_000
"""Of one schedule; some are unrolled into thousands of steps."""
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def lines_of(dialect: str, schedule: Json) -> str:
    """The trace of a schedule, a step a line.

    MetaSchedule's instructions become calls with their decisions, AutoTVM's knobs and Ansor's steps a line each,
    Halide's schedule is its own source. What none of these can read is shown as JSON.
    """
    if schedule is None:
        return "the dialect's default schedule"
    try:
        text = "\n".join(_FORMS.get(dialect, _as_json)(schedule))
    except (TypeError, ValueError, IndexError, KeyError, AttributeError):
        text = "\n".join(_as_json(schedule))
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}\n... {len(text) - MAX_CHARS} characters more"


def _metaschedule(schedule: Json) -> Iterator[str]:
    instructions, decisions = schedule
    decided = {int(index): decision for index, decision in decisions}
    for index, (name, inputs, attrs, outputs) in enumerate(instructions):
        if name == "EnterPostproc":
            yield "# what follows is done after the search"
            continue
        words = [_value(value) for value in [*inputs, *attrs]]
        if index in decided:
            words.append(f"decision={_value(decided[index])}")
        told = f"{', '.join(map(str, outputs))} = " if outputs else ""
        yield f"{told}{_WORD.sub('_', name).lower()}({', '.join(words)})"


def _autotvm(schedule: Json) -> Iterator[str]:
    for name, kind, value in schedule:
        yield f"{name} = {_KNOBS.get(kind, kind)}({_value(value)})"


def _auto_scheduler(schedule: Json) -> Iterator[str]:
    for kind, stage, *rest in schedule:
        yield f"{_STEPS.get(kind, kind)}(stage {stage}{''.join(f', {_value(value)}' for value in rest)})"


def _halide(schedule: Json) -> Iterator[str]:
    source = schedule if isinstance(schedule, str) else schedule["source"]
    yield from source.splitlines()


def _as_json(schedule: Json) -> Iterator[str]:
    yield from orjson.dumps(schedule, option=orjson.OPT_INDENT_2).decode().splitlines()


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return value if isinstance(value, str) else orjson.dumps(value).decode()


_FORMS = {
    "metaschedule": _metaschedule,
    "metaschedule_legacy": _metaschedule,
    "autotvm": _autotvm,
    "auto_scheduler": _auto_scheduler,
    "halide": _halide,
}
_KNOBS = {"sp": "split", "re": "reorder", "an": "annotate", "ot": "choose"}
_STEPS = {
    "AN": "annotate", "FU": "fuse", "PR": "pragma", "RE": "reorder", "SP": "split", "FSP": "follow_split",
    "FFSP": "follow_fused_split", "SA": "storage_align", "CA": "compute_at", "CI": "compute_inline",
    "CR": "compute_root", "CHR": "cache_read", "CHW": "cache_write", "RF": "rfactor",
}  # fmt: skip
