"""More workloads from those at hand: rules in YAML give batch, channels, spatial sizes and dtype other values.

A file of rules::

    version: 1
    rules:
      - match: conv2d            # a regular expression on the workload's name; without it all workloads
        batch: [1, 8]            # a value, or a list of them
        channels: [x0.5, x2]     # a factor of what the workload has
      - spatial: x2              # height and width together

A rule takes every combination of its values; axes it does not name stay as they are. What the axes of a workload are,
and what it is at other values, is the dialect's to say: see ``Operator``.
"""

from __future__ import annotations

import itertools
import math
import pkgutil
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol, TypeAlias

from lorien.errors import BadInput, UnsupportedOperation
from lorien.records import Json, Workload

Axes: TypeAlias = dict[str, int | str]
"""The value of each axis: an extent, or for ``dtype`` a name."""
Value: TypeAlias = int | Fraction | str
"""What a rule gives an axis: an extent, a factor, a dtype."""

RULES_VERSION = 1
AXES = ("batch", "channels", "in_channels", "out_channels", "depth", "height", "width", "length", "dtype")
"""What an operator may have. ``channels`` alone is that of operators that keep them apart: pooling, depthwise."""
GROUPS = {"channels": ("channels", "in_channels", "out_channels"), "spatial": ("depth", "height", "width", "length")}
"""Names in rules for several axes that take the same value or factor."""
MAX_FILE_BYTES = 64 << 10
MAX_EXTENT = 2**31 - 1
MAX_POINTS = 2**50
"""Of all axes multiplied: beyond it sizes of tensors no longer fit into TVM's integers."""
MAX_COMBINATIONS = 100_000
"""In one call. Each is a module that the dialect lowers."""
DTYPES = ("float16", "bfloat16", "float32", "float64")

_FACTOR = r"x([0-9]{1,12}(?:\.[0-9]{1,12})?|[0-9]{1,12}/[1-9][0-9]{0,11})"
_SHOWN = 200
"""Characters of foreign text in a message."""

_RECOGNIZERS = {"metaschedule": "lorien.dialects.metaschedule.mutate:recognize"}


class Operator(Protocol):
    """A workload whose operator is understood well enough to be made again at other sizes."""

    @property
    def axes(self) -> Axes:
        """Those of ``AXES`` that it has, with their values in the workload."""

    def at(self, axes: Axes, name: str) -> Workload:
        """The same operator with these values of all its axes, called once, in no network.

        Raises ``BadInput`` with the reason when there is no such operator: a kernel larger than its input, channels
        that do not divide into the groups.
        """


@dataclass(frozen=True)
class Rule:
    """One rule: the workloads it is for, and the values of each axis or group it names."""

    match: re.Pattern[str]
    values: Mapping[str, tuple[Value, ...]]

    @property
    def combinations(self) -> int:
        """How many choices it has, at most."""
        return math.prod(map(len, self.values.values()))

    def choices(self, axes: Axes) -> Iterator[dict[str, Value]]:
        """Every combination of its values over those of these axes that it names; none when it names none of them."""
        named = {name: [axis for axis in GROUPS.get(name, (name,)) if axis in axes] for name in self.values}
        names = [name for name, members in named.items() if members]
        for values in itertools.product(*(self.values[name] for name in names)) if names else ():
            yield {axis: value for name, value in zip(names, values, strict=True) for axis in named[name]}


@dataclass
class MutateReport:
    """What came of the rules: the new workloads, and why there are no more."""

    workloads: list[Workload] = field(default_factory=list)
    duplicates: int = 0
    """Combinations that gave a workload already there."""
    unsupported: list[str] = field(default_factory=list)
    """Workloads that cannot be mutated, with the reason."""
    invalid: list[str] = field(default_factory=list)
    """Combinations that are no operator, with the reason."""


def load_rules(path: Path) -> list[Rule]:
    """The rules in a YAML file. Raises ``BadInput`` naming the rule that is none."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}. Fix: give the path of a YAML file of rules") from None
    if len(text) > MAX_FILE_BYTES:
        raise BadInput(f"{path} is larger than {MAX_FILE_BYTES >> 10} KiB: no file of rules. Fix: give fewer rules")
    value = _read_yaml(path, text)
    if not isinstance(value, dict) or set(value) != {"version", "rules"} or not isinstance(value["rules"], list):
        raise BadInput(
            f"{path} is no file of rules. Fix: give it the two keys version: {RULES_VERSION} and rules: [...]"
        )
    if value["version"] != RULES_VERSION:
        raise BadInput(
            f"{path} has rules of version {_brief(value['version'])}, this Lorien reads {RULES_VERSION}. "
            "Fix: pip install --upgrade lorien, or write them as docs/workloads.md shows"
        )
    if not value["rules"]:
        raise BadInput(f"{path} holds no rule. Fix: add one, such as '- batch: [1, 8]'")
    rules = []
    for number, rule in enumerate(value["rules"], 1):
        try:
            rules.append(_rule(rule))
        except BadInput as error:
            raise BadInput(f"{path}: rule {number}: {error}") from None
    return rules


def mutate(
    workloads: Sequence[Workload], rules: Sequence[Rule], progress: Callable[[int], None] = lambda done: None
) -> MutateReport:
    """Apply every rule to every workload it matches.

    Parameters
    ----------
    workloads : sequence of Workload
        Where to start from; they are not among the new ones.
    rules : sequence of Rule
        Those of ``load_rules``.
    progress : callable
        Called with the number of workloads done.

    Returns
    -------
    MutateReport
        New workloads, each once, in the order of the workloads and the rules.

    Raises
    ------
    BadInput
        The rules have more combinations than ``MAX_COMBINATIONS`` for these workloads. Nothing has been made.
    """
    asked = sum(rule.combinations for workload in workloads for rule in rules if rule.match.search(workload.name))
    if asked > MAX_COMBINATIONS:
        raise BadInput(
            f"the rules have {asked} combinations for {len(workloads)} workloads; the limit is "
            f"{MAX_COMBINATIONS}. Fix: give fewer values, or a narrower match"
        )
    seen = {workload.key for workload in workloads}
    report = MutateReport()
    for done, workload in enumerate(workloads, 1):
        matching = [rule for rule in rules if rule.match.search(workload.name)]
        if matching:
            try:
                operator = _recognize(workload)
            except (BadInput, UnsupportedOperation) as error:
                report.unsupported.append(f"{workload.name}: {error}")
            else:
                for choice in itertools.chain.from_iterable(rule.choices(operator.axes) for rule in matching):
                    _mutate(workload, operator, choice, seen, report)
        progress(done)
    return report


def _recognize(workload: Workload) -> Operator:
    if workload.dialect not in _RECOGNIZERS:
        raise UnsupportedOperation(
            f"workloads of dialect {workload.dialect!r} cannot be mutated; those of {', '.join(_RECOGNIZERS)} can"
        )
    operator: Operator = pkgutil.resolve_name(_RECOGNIZERS[workload.dialect])(workload)
    return operator


def _mutate(
    workload: Workload, operator: Operator, choice: dict[str, Value], seen: set[str], report: MutateReport
) -> None:
    label = ", ".join(f"{axis} {_shown(value)}" for axis, value in choice.items())
    try:
        axes = {axis: _resolve(axis, value, choice.get(axis)) for axis, value in operator.axes.items()}
        changed = [
            str(value) if axis == "dtype" else f"{axis}{value}"
            for axis, value in axes.items()
            if value != operator.axes[axis]
        ]
        extents = [value for value in axes.values() if isinstance(value, int)]
        if max(extents, default=1) > MAX_EXTENT or math.prod(extents) > MAX_POINTS:
            raise BadInput(f"an axis may have {MAX_EXTENT} entries, and all together {MAX_POINTS}")
        made = operator.at(axes, "_".join([workload.name, *changed])) if changed else workload
    except BadInput as error:
        report.invalid.append(f"{workload.name} at {label}: {error}")
        return
    if made.key in seen:
        report.duplicates += 1
    else:
        seen.add(made.key)
        report.workloads.append(made)


def _resolve(axis: str, old: int | str, value: Value | None) -> int | str:
    if value is None:
        return old
    if not isinstance(value, Fraction):
        return value
    new = int(old) * value
    if new.denominator != 1 or new < 1:
        raise BadInput(f"{axis} {old} times {_shown(value)[1:]} is {float(new):g}, no whole number of at least 1")
    return int(new)


def _shown(value: Value) -> str:
    return f"x{float(value):g}" if isinstance(value, Fraction) else str(value)


def _rule(rule: Json) -> Rule:
    if not isinstance(rule, dict):
        raise BadInput(f"{_brief(rule)} is not a mapping of axes to values")
    known = ("match", *dict.fromkeys((*GROUPS, *AXES)))
    unknown = [name if isinstance(name, str) else _brief(name) for name in rule if name not in known]
    if unknown:
        raise BadInput(f"unknown name {', '.join(unknown)[:_SHOWN]}; known: {', '.join(known)}")
    for group, members in GROUPS.items():
        twice = [name for name in members if name != group and name in rule and group in rule]
        if twice:
            raise BadInput(f"{group} already gives {twice[0]} its values. Fix: keep one of the two")
    pattern = rule.get("match", "")
    if not isinstance(pattern, str):
        raise BadInput(f"match {_brief(pattern)} is no text. Fix: give one regular expression, in quotes")
    try:
        match = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(f"match {_brief(pattern)} is no regular expression: {error}") from None
    values = {
        name: tuple(dict.fromkeys(_value(name, item) for item in (given if isinstance(given, list) else [given])))
        for name, given in rule.items()
        if name != "match"
    }
    if not values or not all(values.values()):
        raise BadInput(f"no values for {', '.join(name for name in values if not values[name]) or 'any axis'}")
    return Rule(match, values)


def _value(name: str, item: Json) -> Value:
    if name == "dtype":
        if item in DTYPES:
            return str(item)
        raise BadInput(f"dtype {_brief(item)} is none of {', '.join(DTYPES)}")
    if isinstance(item, int) and not isinstance(item, bool) and 0 < item <= MAX_EXTENT:
        return item
    factor = re.fullmatch(_FACTOR, item) if isinstance(item, str) else None
    if factor and Fraction(factor[1]) > 0:
        return Fraction(factor[1])
    raise BadInput(
        f"{name} {_brief(item)} is neither an extent such as 8 nor a factor such as x2, x0.5 or x1/3; "
        f"an extent is at most {MAX_EXTENT}, a factor has at most 12 digits"
    )


def _read_yaml(path: Path, text: bytes) -> Json:
    """The value of a YAML text. Aliases share what they name; merge keys, which copy it, are refused."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.constructor.ConstructorError(None, None, "<< is not allowed in rules", node.start_mark)

    try:
        return yaml.load(text, Loader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:_SHOWN]
    except RecursionError:
        reason = "it is nested too deeply"
    except Exception:  # its constructors raise what they like on numbers, dates and tagged values
        reason = "a number, a date or a tagged value in it is none, or too long"
    raise BadInput(f"{path} is not YAML: {reason}. Fix: write it as docs/workloads.md shows")


class _Brief(reprlib.Repr):
    """A value for a message, however large: aliases make lists of lists that no memory holds written out."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 3, _SHOWN

    def repr_int(self, x: int, level: int) -> str:
        return str(x) if x.bit_length() <= 128 else f"a number of {x.bit_length()} bits"


_brief = _Brief().repr
