"""What moves between the parts: workloads, candidates, measurements and tuning records.

All are frozen and go to JSON and back. What identifies a thing is an explicit list of fields with a version in it
(``WORKLOAD_KEY_VERSION``); golden files in ``tests/golden`` hold keys of every past version.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson

from lorien.errors import BadInput

if TYPE_CHECKING:
    from lorien.target import Target

Json: TypeAlias = Any
"""A JSON value: what ``orjson`` reads and writes."""

Layout: TypeAlias = Literal["auto", "plain"]
"""How a model is lowered: ``auto`` as suits the target (simplified, channels in blocks, weights packed), ``plain`` as
its file has it."""

WORKLOAD_KEY_VERSION = 1
CANDIDATE_KEY_VERSION = 1


def canonical_json(value: Json) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


class Outcome(str, Enum):
    """How a measurement ended. Everything but ``OK`` is a failure, and still a record that trains models."""

    OK = "ok"
    INSTANTIATION_ERROR = "instantiation_error"
    """The schedule does not fit the workload or the device (too many threads, too much shared memory)."""
    BUILD_ERROR = "build_error"
    BUILD_TIMEOUT = "build_timeout"
    RUN_ERROR = "run_error"
    RUN_TIMEOUT = "run_timeout"
    CRASH = "crash"
    """The child process died of a signal."""
    OUT_OF_MEMORY = "out_of_memory"
    WRONG_RESULT = "wrong_result"
    UNKNOWN_ERROR = "unknown_error"


@dataclass(frozen=True)
class Workload:
    """One operator (or fused group) with its shapes, as a dialect names it.

    Parameters
    ----------
    dialect : str
        Name of the tuning framework it belongs to.
    name : str
        For people; not part of the identity.
    identity : Json
        What makes two workloads the same: template and arguments (AutoTVM), structural hash (MetaSchedule).
    definition : str, optional
        What the dialect needs to build it again, where the identity alone is not enough.
    flop : float, optional
        Floating-point operations of one run; None when unknown.
    weight : float
        Calls of it in the networks named.
    networks : tuple of str
        Networks it was found in.
    """

    dialect: str
    name: str
    identity: Json
    definition: str | None = field(default=None, repr=False)
    flop: float | None = None
    weight: float = 1.0
    networks: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits over (version, dialect, identity)."""
        fields = [WORKLOAD_KEY_VERSION, self.dialect, self.identity]
        return hashlib.sha256(canonical_json(fields)).hexdigest()[:32]

    def _check(self) -> None:
        """Raise ``TypeError`` or ``ValueError`` on fields of the wrong kind: files of workloads come from anywhere."""
        if self.definition is not None and not isinstance(self.definition, str):
            raise TypeError("its definition is no text")
        if not all(isinstance(network, str) for network in self.networks):
            raise TypeError("a network's name is no text")
        if self.flop is not None and not (isinstance(self.flop, (int, float)) and 0 <= self.flop < math.inf):
            raise ValueError(f"{self.flop!r} operations")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"{self.weight!r} calls")

    def to_json(self) -> dict[str, Json]:
        """One line of a ``workloads.jsonl``."""
        return {
            "dialect": self.dialect,
            "name": self.name,
            "key": self.key,
            "identity": self.identity,
            "definition": self.definition,
            "flop": self.flop,
            "weight": self.weight,
            "networks": list(self.networks),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Workload:
        """Read what ``to_json`` wrote. Raises ``BadInput`` on missing fields or a key that does not fit."""
        try:
            workload = cls(
                dialect=str(value["dialect"]),
                name=str(value["name"]),
                identity=value["identity"],
                definition=value.get("definition"),
                flop=value.get("flop"),
                weight=float(value.get("weight", 1.0)),
                networks=tuple(value.get("networks", ())),
            )
            key = workload.key
            workload._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"not a workload: {type(error).__name__} {error}. Fix: write the file with lorien extract"
            ) from None
        if value.get("key", key) != key:
            raise BadInput(
                f"workload {workload.name!r} has key {value['key']!r} but its fields give {key!r}: "
                "it was edited or written by another version. Fix: lorien extract the model again"
            )
        return workload


@dataclass(frozen=True)
class Candidate:
    """One schedule for a workload, in the dialect's own JSON form; ``schedule=None`` is the dialect's default.

    ``score`` is the expected fraction of the best achievable performance where a model gave one.
    """

    schedule: Json
    score: float | None = None

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits over (version, schedule)."""
        return candidate_key(self.schedule)


def candidate_key(schedule: Json) -> str:
    """Identity of a schedule within its workload: 16 hexadecimal digits."""
    return hashlib.blake2b(canonical_json([CANDIDATE_KEY_VERSION, schedule]), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Measurement:
    """What came of building and running a candidate. A failure is data, never an exception.

    Parameters
    ----------
    outcome : Outcome
        ``OK`` exactly when ``latencies_s`` is not empty.
    latencies_s : tuple of float
        One mean latency in seconds per repeat.
    detail : str
        The error text of a failure, shortened; empty when there is none.
    timestamp_s : float
        Unix time of the end of the measurement; 0 when the log does not say.
    build_s : float
        CPU seconds that its build took; 0 when the log does not say.
    disturbed : bool
        Another process measured on the same cores or device while it ran, or others used these cores.
    others_cores : float, optional
        Cores' worth of other processes' work beside it, of the cores it could use; None where nobody counted.
    """

    outcome: Outcome
    latencies_s: tuple[float, ...] = ()
    detail: str = ""
    timestamp_s: float = 0.0
    build_s: float = 0.0
    disturbed: bool = False
    others_cores: float | None = None

    @property
    def ok(self) -> bool:
        """True when it ran and was timed."""
        return self.outcome is Outcome.OK

    @cached_property
    def latency_s(self) -> float | None:
        """Median over the repeats in seconds; None for a failure."""
        if not self.ok:
            return None
        return self.latencies_s[0] if len(self.latencies_s) == 1 else statistics.median(self.latencies_s)

    def to_json(self) -> dict[str, Json]:
        """Plain JSON object; what disturbed it only where it is known."""
        beside = {"disturbed": True} if self.disturbed else {}
        counted = {"others_cores": round(self.others_cores, 2)} if self.others_cores is not None else {}
        return {
            "outcome": self.outcome.value,
            "latencies_s": list(self.latencies_s),
            "detail": self.detail,
            "timestamp_s": self.timestamp_s,
            "build_s": self.build_s,
            **beside,
            **counted,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Measurement:
        """Read what ``to_json`` wrote."""
        return cls(
            outcome=Outcome(value["outcome"]),
            latencies_s=tuple(value["latencies_s"]),
            detail=value.get("detail", ""),
            timestamp_s=value.get("timestamp_s", 0.0),
            build_s=value.get("build_s", 0.0),
            disturbed=value.get("disturbed", False),
            others_cores=value.get("others_cores"),
        )


@dataclass(frozen=True)
class TuningRecord:
    """A measured candidate: the row every log is made of.

    Parameters
    ----------
    workload, target, candidate, measurement
        What was run, where, how, and what came of it.
    build : str
        Framework and version the schedule was measured with, such as ``tvm 0.27.0.post1``.
    network : str, optional
        Network the log was tuned for.
    log : str, optional
        Where the full log is.
    variant : str, optional
        What of the schedule a neighbour in the graph sees, where the dialect says: the data layout that AutoTVM's
        NCHWc templates choose. Follows from the schedule, and is no part of the identity.
    """

    workload: Workload
    target: Target
    candidate: Candidate
    measurement: Measurement
    build: str
    network: str | None = None
    log: str | None = None
    variant: str | None = None

    @cached_property
    def key(self) -> str:
        """Identity of (target, workload, build, candidate): 32 hexadecimal digits."""
        fields = [self.target.key, self.workload.key, self.build, self.candidate.key]
        return hashlib.sha256(canonical_json(fields)).hexdigest()[:32]
