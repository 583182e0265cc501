"""Schedules: what Adams2019 makes of an algorithm under given parameters, and what it says of them.

Adams2019 is deterministic: the same algorithm, parameters and Halide give the same schedule. A candidate is those
parameters with the schedule's source, by which a replay is checked, and its featurization.
"""

from __future__ import annotations

import base64
import random
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lorien.dialects.halide.pipelines import Pipeline, pipeline_of, require_halide
from lorien.errors import BadInput
from lorien.machine import physical_cores
from lorien.records import Candidate, Json, Workload
from lorien.target import Target

if TYPE_CHECKING:
    import halide as hl

AUTOSCHEDULER = "Adams2019"
OWN_BEAM = 32
"""Beam of the schedule that stands for Halide's own choice: Adams2019's default."""
WIDE_SHARE = 0.5
"""Of the seconds of a search, what wide beams may take."""
SAMPLES = 256
_TASKS = (1, 2, 4, 8, 16)
"""Adams2019 looks for so many parallel tasks a core: told of more cores than there are, it makes smaller tasks."""
_DROPOUT = (1, 5, 10, 20, 35, 50, 70, 85)
"""Percent of the decisions that a sample may take, at each step of the search."""

# Of src/autoschedulers/adams2019/Featurization.h, version 3: doubles of ScheduleFeatures, then ints of
# PipelineFeatures, all saved as float32, of every stage but the inputs (State::save_featurization).
SCHEDULE_FEATURES = (
    "num_realizations",
    "num_productions",
    "points_computed_per_realization",
    "points_computed_per_production",
    "points_computed_total",
    "points_computed_minimum",
    "innermost_loop_extent",
    "innermost_pure_loop_extent",
    "unrolled_loop_extent",
    "inner_parallelism",
    "outer_parallelism",
    "bytes_at_realization",
    "bytes_at_production",
    "bytes_at_root",
    "innermost_bytes_at_realization",
    "innermost_bytes_at_production",
    "innermost_bytes_at_root",
    "inlined_calls",
    "unique_bytes_read_per_realization",
    "unique_lines_read_per_realization",
    "allocation_bytes_read_per_realization",
    "working_set",
    "vector_size",
    "native_vector_size",
    "num_vectors",
    "num_scalars",
    "scalar_loads_per_vector",
    "vector_loads_per_vector",
    "scalar_loads_per_scalar",
    "bytes_at_task",
    "innermost_bytes_at_task",
    "unique_bytes_read_per_vector",
    "unique_lines_read_per_vector",
    "unique_bytes_read_per_task",
    "unique_lines_read_per_task",
    "working_set_at_task",
    "working_set_at_production",
    "working_set_at_realization",
    "working_set_at_root",
)
TYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "float", "double")
OPERATIONS = (
    "const", "cast", "variable", "param", "add", "sub", "mod", "mul", "div", "min", "max", "eq", "ne", "lt", "le",
    "and", "or", "not", "select", "image_call", "func_call", "self_call", "extern_call", "let",
)  # fmt: skip
ACCESSES = ("load_func", "load_self", "load_image", "store")
PATTERNS = ("pointwise", "transpose", "broadcast", "slice")
PIPELINE_FEATURES = (
    *(f"uses_{kind}" for kind in TYPES),
    *(f"{operation}_{kind}" for operation in OPERATIONS for kind in TYPES),
    *(f"{pattern}_{access}_{kind}" for pattern in PATTERNS for access in ACCESSES for kind in TYPES),
)
STAGE_FEATURES = (*SCHEDULE_FEATURES, *PIPELINE_FEATURES)


@dataclass(frozen=True)
class Scheduled:
    """An algorithm with its schedule applied, and the candidate that makes it again."""

    pipeline: Pipeline
    halide: hl.Pipeline
    candidate: Candidate


def build_name() -> str:
    """Framework and version, as records name it. Raises ``MissingExtra``."""
    require_halide()
    return f"halide {version('halide')}"


@lru_cache(maxsize=1)
def load_autoscheduler() -> None:
    """Make Adams2019 known to Halide: its library is in the wheel."""
    require_halide()
    import halide as hl

    (library,) = Path(hl.__file__).parent.glob("lib*/libautoschedule_adams2019.*")
    hl.load_plugin(str(library))


def native_target() -> Target:
    """This machine: LLVM's name for the CPU as far as Halide tells it, and the physical cores this process may use."""
    load_autoscheduler()
    import halide as hl

    return Target.parse({"kind": "llvm", "mcpu": cpu_of(hl.get_host_target()), "num-cores": physical_cores()})


@lru_cache(maxsize=8)
def halide_target(target: Target) -> hl.Target:
    """This machine as Halide names it. Raises ``BadInput`` when the target is another machine."""
    load_autoscheduler()
    import halide as hl

    host = hl.get_host_target()
    mcpu = dict(target.attrs).get("mcpu")
    if target.kind != "llvm" or mcpu != cpu_of(host):
        raise BadInput(
            f"Halide builds for this machine here, {cpu_of(host)}, not for {target.key}. Fix: --target native"
        )
    return host


def cpu_of(host: hl.Target) -> str:
    """LLVM's name of a CPU as far as Halide tells it."""
    text = host.to_string()
    tuned = re.search(r"-tune_([a-z0-9_]+)", text)
    return tuned[1] if tuned else text.partition("-linux")[0]


def default_parameters(target: Target) -> dict[str, str]:
    """Parameters of Halide's own choice."""
    return {"parallelism": str(target.num_cores or 1), "beam_size": str(OWN_BEAM)}


def schedule(workload: Workload, parameters: dict[str, str], target: Target) -> Scheduled:
    """The schedule that Adams2019 makes under these parameters.

    Raises
    ------
    BadInput
        There is no such pipeline or machine, or Adams2019 takes no such parameter.
    """
    import halide as hl

    host = halide_target(target)
    pipeline = pipeline_of(workload)
    whole = hl.Pipeline(pipeline.output)
    try:
        result = whole.apply_autoscheduler(host, hl.AutoschedulerParams(AUTOSCHEDULER, parameters))
    except (RuntimeError, hl.HalideError) as error:
        raise BadInput(f"{AUTOSCHEDULER} cannot schedule {workload.name}: {str(error).strip()[:200]}") from None
    candidate = Candidate(
        {
            "autoscheduler": AUTOSCHEDULER,
            "parameters": parameters,
            "source": _plain(result.schedule_source),
            "featurization": base64.b64encode(zlib.compress(bytes(result.featurization))).decode(),
        }
    )
    return Scheduled(pipeline, whole, candidate)


def replay(workload: Workload, candidate: Candidate, target: Target) -> Scheduled:
    """A candidate's schedule again; Halide's own choice where it has none.

    Raises
    ------
    BadInput
        It is no candidate of this dialect, or this Halide makes another schedule of its parameters.
    """
    given = candidate.schedule
    if given is None:
        return schedule(workload, default_parameters(target), target)
    if not isinstance(given, dict) or given.get("autoscheduler") != AUTOSCHEDULER:
        raise BadInput(f"no schedule of {AUTOSCHEDULER}: {given!r:.80}")
    made = schedule(workload, dict(given["parameters"]), target)
    if made.candidate.schedule["source"] != given["source"]:
        raise BadInput(f"this Halide ({build_name()}) makes another schedule of these parameters. Fix: tune again")
    return made


def featurization_of(given: Json) -> npt.NDArray[np.float32]:
    """Features (stages, ``STAGE_FEATURES``) of a candidate's schedule. Raises ``BadInput`` when it holds none."""
    try:
        numbers = np.frombuffer(zlib.decompress(base64.b64decode(given["featurization"])), dtype="<f4")
        return numbers.reshape(-1, len(STAGE_FEATURES))
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise BadInput(f"a schedule without Adams2019's features ({error})") from None


def samples(target: Target, seed: int) -> Iterator[dict[str, str]]:
    """Parameters of endless samples of the space: narrow and wide beams without dropout first, then random ones."""
    rng = random.Random(seed)
    cores = target.num_cores or 1
    for beam in (1, OWN_BEAM):
        for tasks in _TASKS:
            yield {"parallelism": str(cores * tasks), "beam_size": str(beam)}
    while True:
        yield {
            "parallelism": str(cores * rng.choice(_TASKS)),
            "beam_size": "1",
            "random_dropout": str(rng.choice(_DROPOUT)),
            "random_dropout_seed": str(rng.randrange(1 << 30)),
        }


def distinct(workload: Workload, target: Target, count: int, seed: int, budget_s: float | None) -> list[Candidate]:
    """Distinct schedules: ``count`` of them, or fewer where time or new ones run out.

    A wide beam takes some ``OWN_BEAM`` times as long as a narrow one, here and again in the build that replays it. With
    a budget only as many are made as ``WIDE_SHARE`` of it is expected to pay for.
    """
    started_s = time.monotonic()
    narrow_s, wide_s = float("inf"), 0.0
    found: dict[str, Candidate] = {}
    for tried, parameters in enumerate(samples(target, seed), 1):
        wide = parameters["beam_size"] != "1"
        if wide and budget_s is not None and wide_s + OWN_BEAM * narrow_s > WIDE_SHARE * budget_s:
            continue
        began_s = time.monotonic()
        candidate = schedule(workload, parameters, target).candidate
        ended_s = time.monotonic()
        if wide:
            wide_s += ended_s - began_s
        else:
            narrow_s = min(narrow_s, ended_s - began_s)
        found.setdefault(candidate.schedule["source"], candidate)
        late = budget_s is not None and ended_s - started_s > budget_s
        if late or len(found) >= count or tried >= 4 * count:
            break
    return list(found.values())


def _plain(source: str) -> str:
    """A schedule's source with the numbers off that Halide adds to names it has seen before."""
    return re.sub(r"\b(\w*[A-Za-z]\w*?)_\d+\b", r"\1", source)
