"""Requests and answers as the OpenAPI page shows them; what does not fit is refused before anything reads it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lorien.serve.limits import DIALECT_CHARS, MAX_NETWORKS, MAX_TOP_K, NAME_CHARS, QUERY_CHARS, TARGET_CHARS


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


TargetText = Annotated[
    str,
    Field(
        min_length=1,
        max_length=TARGET_CHARS,
        description="TVM's form, KIND_MODEL, or a target's key.",
        examples=["llvm -mcpu=znver4 -num-cores=2", "cuda_rtx3080", "llvm-mcpu_znver4-num-cores_2"],
    ),
]
TargetValue = Annotated[
    TargetText | dict[str, str | bool | int | float | list[str | int]],
    Field(description="A target as text, or in TVM's dictionary form."),
]
WorkloadKey = Annotated[str, Field(pattern="^[0-9a-f]{32}$", description="Identity of the workload.")]


_DENSE = {
    "dialect": "autotvm",
    "name": "dense_nopack.x86(1x64, 64x64)",
    "identity": [
        "dense_nopack.x86",
        [["TENSOR", [1, 64], "float32"], ["TENSOR", [64, 64], "float32"], None, "float32"],
    ],
}
_SCHEDULE = [["tile_x", "sp", [-1, 4]], ["tile_y", "sp", [-1, 1]], ["tile_k", "sp", [-1, 1]]]
_RANK: dict[str, Any] = {"workload": _DENSE, "target": "x86_i7-3770", "candidates": [_SCHEDULE, []]}
_DELIVER: dict[str, Any] = {
    "workload": {"dialect": "metaschedule", "name": "conv2d", "identity": ["structural", "1"]},
    "target": "llvm -mcpu=znver4 -num-cores=2",
}


class WorkloadValue(_Request):
    """A line of a ``workloads.jsonl``, as ``lorien extract`` writes it."""

    dialect: Annotated[str, Field(max_length=DIALECT_CHARS)]
    name: Annotated[str, Field(max_length=NAME_CHARS)]
    identity: Any
    key: WorkloadKey | None = None
    definition: str | None = None
    flop: Annotated[float, Field(ge=0)] | None = None
    weight: Annotated[float, Field(ge=0)] = 1.0
    networks: Annotated[list[Annotated[str, Field(max_length=QUERY_CHARS)]], Field(max_length=MAX_NETWORKS)] = []


class RankRequest(_Request):
    """Candidates of a workload, to be scored for a target."""

    model_config = ConfigDict(json_schema_extra={"examples": [_RANK]})

    workload: WorkloadValue
    target: TargetValue
    candidates: Annotated[list[Any], Field(description="Schedules in the dialect's own JSON form.")]


class DeliverRequest(_Request):
    """A workload that needs a schedule."""

    model_config = ConfigDict(json_schema_extra={"examples": [_DELIVER]})

    workload: WorkloadValue
    target: TargetValue
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="Candidates to keep, and to verify.")] = 8
    verify: Annotated[bool, Field(strict=True, description="Build and run the top k on the service's device.")] = False


class ModelValue(BaseModel):
    """A model that is loaded."""

    dialect: str
    target: str
    family: str
    version: Annotated[str, Field(description="Another one for each publication.")]
    feature_set: Annotated[str, Field(description="NAME/VERSION of the feature rows it reads.")]
    columns: Annotated[int, Field(description="Length of such a row.")]
    rows: Annotated[int, Field(description="Records it was trained on.")]
    networks: list[str]
    holdout: Annotated[dict[str, Any], Field(description="Scores on workloads it had not seen.")]


class Chosen(BaseModel):
    """The model for a target: its own, or (``exact`` is false) the nearest of its family."""

    model: ModelValue
    exact: bool


class Models(BaseModel):
    """All models that are loaded, and what could not be."""

    models: list[ModelValue]
    problems: dict[str, str]


class Scores(BaseModel):
    """Expected fractions of the best achievable performance, in the order of the candidates."""

    scores: list[float]
    target: Annotated[str, Field(description="Target of the model that gave them.")]
    version: str
    exact: bool


class MeasurementValue(BaseModel):
    """What came of building and running a schedule."""

    outcome: str
    latencies_s: list[float]
    detail: str
    timestamp_s: float
    disturbed: Annotated[bool, Field(description="Other processes used the same cores or device meanwhile.")] = False


class TrialValue(BaseModel):
    """One of the top k."""

    schedule: Any
    score: float | None
    measurement: MeasurementValue | None


class DeliveryValue(BaseModel):
    """A schedule, and how it was come by."""

    source: Literal["database", "ranked", "default"]
    schedule: Any
    score: float | None
    latency_s: float | None
    default_latency_s: float | None
    trials: list[TrialValue]
    candidates: int
    note: str
    seconds: float
    confident_k: int | None = None
    expected_fraction: float | None = None
    disturbance: Annotated[str, Field(description="What else used the device while the trials ran; or empty.")] = ""


class RecordValue(BaseModel):
    """A schedule in the database."""

    workload: dict[str, Any]
    target: dict[str, Any]
    schedule: Any
    measurement: MeasurementValue
    build: str
    network: str | None
    log: str | None
    variant: Annotated[str | None, Field(description="Data layout or the like that the schedule chooses.")] = None


class Records(BaseModel):
    """Schedules, fastest first."""

    records: list[RecordValue]


class Stats(BaseModel):
    """What the database holds."""

    targets: int
    workloads: int
    records: int


class Status(BaseModel):
    """Health of the service."""

    status: Literal["ok", "ready", "not ready"]


class Error(BaseModel):
    """What went wrong: the name of an error of ``lorien.errors``, and a message that says what to do."""

    error: str
    message: str
