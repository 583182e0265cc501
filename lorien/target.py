"""Canonical targets: what a schedule was measured on, told apart by a fixed list of attributes.

A target comes as TVM's dictionary form, its old string form (``llvm -mcpu=znver4 -num-cores=2``), a short form
``kind_model`` (``cuda_rtx3080``, ``arm_cortex-a72``) or its own key (``llvm-mcpu_znver4-num-cores_2``). No compiler is
needed to read any of them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorien.errors import BadInput
from lorien.records import Json

KINDS = (
    "c",
    "cuda",
    "hexagon",
    "llvm",
    "metal",
    "nvptx",
    "opencl",
    "rocm",
    "vulkan",
    "webgpu",
)
# What tells two devices apart. Derived attributes (thread limits, warp size, keys) follow from these.
IDENTITY_FIELDS = ("device", "model", "mtriple", "mcpu", "arch", "mattr", "num-cores")

_ALIASES = {"march": "arch", "mtriple": "mtriple", "target": "mtriple"}
_SHORT_KINDS = {"x86": ("llvm", {}), "arm": ("llvm", {"device": "arm_cpu"}), "aarch64": ("llvm", {"device": "arm_cpu"})}
_ARM = re.compile(
    r"arm|aarch64|cortex|neoverse|apple-|cyclone|thunderx|ampere|graviton|\bgrace\b|a64fx|exynos|kryo|oryon|falkor|saphira"
    r"|carmel|tsv110|olympus|monaka|gb10|\bc1-",
    re.I,
)
_RISCV = re.compile(
    r"riscv|rv32|rv64|\brocket\b|sifive|syntacore|veyron|xiangshan|spacemit|ascalon|hazard3|andes-", re.I
)
"""CPUs as LLVM names them for ``-mcpu``. Rocket is a core of RISC-V, Rocket Lake one of x86."""
_NO_MODEL = "unknown"
"""TVM's default where no model was given, which tells nothing."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._+]+")
_KEY_FIELD = re.compile(f"-({'|'.join(IDENTITY_FIELDS)})_")


@dataclass(frozen=True)
class Target:
    """A device as a compiler sees it.

    Parameters
    ----------
    kind : str
        TVM target kind: ``llvm``, ``cuda``, ``rocm``...
    attrs : tuple of (str, value)
        All attributes given, sorted by name, ``IDENTITY_FIELDS`` and others.

    Notes
    -----
    Two targets are the same for Lorien when their ``key`` is the same.
    """

    kind: str
    attrs: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str | Mapping[str, Json] | Target) -> Target:
        """Read any of the four forms.

        Raises
        ------
        BadInput
            The kind is none TVM knows, or an option is not of the form ``-name=value``.
        """
        if isinstance(text, Target):
            return text
        if isinstance(text, Mapping):
            return cls._from_dict(text)
        if not isinstance(text, str):
            raise BadInput(f"target {text!r:.80} is neither a text nor an object")
        if text.lstrip().startswith("{"):
            import orjson

            try:
                return cls._from_dict(orjson.loads(text))
            except orjson.JSONDecodeError as error:
                raise BadInput(f"target {text!r} is not JSON: {error}") from None
        return cls._from_string(text)

    @classmethod
    def from_key(cls, key: str) -> Target:
        """A target whose ``key`` is ``key``; attributes the key leaves out, and characters it replaced, are lost."""
        kind, *fields = _KEY_FIELD.split(key)
        attrs: dict[str, Json] = dict(zip(fields[::2], fields[1::2], strict=True))
        if attrs.get("num-cores", "").isdigit():
            attrs["num-cores"] = int(attrs["num-cores"])
        return cls._from_dict({"kind": kind, **attrs})

    @classmethod
    def _from_dict(cls, value: Mapping[str, Json]) -> Target:
        kind = value.get("kind")
        if kind not in KINDS:
            raise BadInput(f"unknown target kind {kind!r}; one of: {', '.join(KINDS)}")
        attrs: dict[str, Any] = {}
        for name, attr in value.items():
            if name in ("kind", "tag", "host") or attr in (None, "", [], ()):
                continue
            if name == "model" and attr == _NO_MODEL:
                continue
            parts = attr if isinstance(attr, (list, tuple)) else (attr,)
            if not all(isinstance(part, str) for part in parts) and not (
                len(parts) == 1 and isinstance(parts[0], (int, float))
            ):
                raise BadInput(
                    f"target attribute {name!r} is {attr!r:.80}: neither a text, a number nor a list of texts"
                )
            if name == "num-cores" and not str(attr).isdecimal():
                raise BadInput(f"target attribute 'num-cores' is {attr!r:.80}: no number of cores")
            attrs[_ALIASES.get(name, name)] = tuple(attr) if isinstance(attr, list) else attr
        return cls(str(kind), tuple(sorted(attrs.items())))

    @classmethod
    def _from_string(cls, text: str) -> Target:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise BadInput(f"target {text!r}: {error}") from None
        if not words:
            raise BadInput("the target is empty; give for example 'llvm -mcpu=znver4 -num-cores=2' or native")
        head, *options = words
        if not options and _KEY_FIELD.search(head):
            return cls.from_key(head)
        value: dict[str, Json] = {}
        if head not in KINDS:
            short, _, model = head.partition("_")
            kind, extra = _SHORT_KINDS.get(short, (short, {}))
            if kind not in KINDS or not model:
                raise BadInput(
                    f"unknown target {head!r}; write TVM's form ('cuda -arch=sm_86', 'llvm -mcpu=skylake'), "
                    f"KIND_MODEL ('cuda_rtx3080') or native. Kinds: {', '.join(KINDS)}"
                )
            value.update(extra, model=model)
            head = kind
        value["kind"] = head
        for option in options:
            name, equals, attr = option.lstrip("-").partition("=")
            if not option.startswith("-") or not equals:
                raise BadInput(f"target {text!r}: {option!r} is not of the form -name=value")
            if name in ("keys", "mattr", "libs"):
                value[name] = [part for part in attr.split(",") if part]
            else:
                value[name] = int(attr) if re.fullmatch(r"-?\d+", attr) else attr
        return cls._from_dict(value)

    @cached_property
    def identity(self) -> dict[str, Json]:
        """The attributes that tell this device from another, in the order of ``IDENTITY_FIELDS``."""
        attrs = dict(self.attrs)
        found: dict[str, Json] = {"kind": self.kind}
        for name in IDENTITY_FIELDS:
            if name in attrs:
                value = attrs[name]
                found[name] = sorted(value) if isinstance(value, tuple) else value
        return found

    @cached_property
    def key(self) -> str:
        """Readable identity, safe in file names and URLs: ``llvm-mcpu_znver4-num-cores_2``."""
        return _key(self.identity)

    @property
    def past_keys(self) -> tuple[str, ...]:
        """Keys that earlier versions gave this target, under which stores of theirs may have it."""
        if "model" in self.identity:
            return ()
        # What TVM writes where no model was given was once taken for one.
        identity = self.identity | {"model": _NO_MODEL}
        return (_key({name: identity[name] for name in ("kind", *IDENTITY_FIELDS) if name in identity}),)

    @cached_property
    def family(self) -> str:
        """Alternative key: targets that share it are near enough for a schedule or a model to be tried."""
        if self.kind != "llvm":
            return self.kind
        attrs = dict(self.attrs)
        hints = " ".join(str(attrs.get(name, "")) for name in ("mtriple", "device", "model", "mcpu", "arch"))
        hints += " " + " ".join(map(str, attrs.get("keys", ())))
        if _ARM.search(hints):
            return "llvm-arm"
        if _RISCV.search(hints):
            return "llvm-riscv"
        return "llvm-x86"

    @property
    def num_cores(self) -> int | None:
        """Cores the target was tuned for; None when it does not say."""
        value = dict(self.attrs).get("num-cores")
        return int(value) if value is not None else None

    def to_json(self) -> dict[str, Json]:
        """TVM's dictionary form."""
        return {
            "kind": self.kind,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in self.attrs},
        }

    def __str__(self) -> str:
        return self.key


def _key(identity: Mapping[str, Json]) -> str:
    parts = [str(identity["kind"])]
    for name, value in identity.items():
        if name != "kind":
            text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"{name}_{_UNSAFE.sub('-', text).strip('-')}")
    return "-".join(parts)
