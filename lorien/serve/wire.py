"""Records and answers to JSON and back: the service and its client speak through these."""

from __future__ import annotations

from collections.abc import Mapping

from lorien.delivery import Delivery, Source, Trial
from lorien.records import Candidate, Json, Measurement, TuningRecord, Workload
from lorien.target import Target

FEATURES_TYPE = "application/octet-stream"
"""Feature rows: little-endian float32, row by row. Nothing to parse, so nothing to parse wrongly; see docs/serve.md."""
FEATURES_DTYPE = "<f4"
LINES_TYPE = "application/x-ndjson"


def record_to_json(record: TuningRecord) -> dict[str, Json]:
    """Plain JSON object of a record."""
    return {
        "workload": record.workload.to_json(),
        "target": record.target.to_json(),
        "schedule": record.candidate.schedule,
        "measurement": record.measurement.to_json(),
        "build": record.build,
        "network": record.network,
        "log": record.log,
        "variant": record.variant,
    }


def record_from_json(value: Mapping[str, Json]) -> TuningRecord:
    """Read what ``record_to_json`` wrote."""
    return TuningRecord(
        workload=Workload.from_json(value["workload"]),
        target=Target.parse(value["target"]),
        candidate=Candidate(value["schedule"]),
        measurement=Measurement.from_json(value["measurement"]),
        build=value["build"],
        network=value["network"],
        log=value["log"],
        variant=value.get("variant"),
    )


def delivery_to_json(delivery: Delivery) -> dict[str, Json]:
    """Plain JSON object of an answer, less what was asked."""
    return {
        "source": delivery.source.value,
        "schedule": delivery.candidate.schedule,
        "score": delivery.candidate.score,
        "latency_s": delivery.latency_s,
        "default_latency_s": delivery.default_latency_s,
        "trials": [
            {
                "schedule": trial.candidate.schedule,
                "score": trial.candidate.score,
                "measurement": trial.measurement.to_json() if trial.measurement else None,
            }
            for trial in delivery.trials
        ],
        "candidates": delivery.candidates,
        "note": delivery.note,
        "seconds": delivery.seconds,
        "confident_k": delivery.confident_k,
        "expected_fraction": delivery.expected_fraction,
        "disturbance": delivery.disturbance,
    }


def delivery_from_json(value: Mapping[str, Json], workload: Workload, target: Target) -> Delivery:
    """Read what ``delivery_to_json`` wrote, for the workload and target that were asked."""
    return Delivery(
        workload=workload,
        target=target,
        source=Source(value["source"]),
        candidate=Candidate(value["schedule"], value["score"]),
        latency_s=value["latency_s"],
        default_latency_s=value["default_latency_s"],
        trials=tuple(
            Trial(
                Candidate(trial["schedule"], trial["score"]),
                Measurement.from_json(trial["measurement"]) if trial["measurement"] else None,
            )
            for trial in value["trials"]
        ),
        candidates=value["candidates"],
        note=value["note"],
        seconds=value["seconds"],
        confident_k=value.get("confident_k"),
        expected_fraction=value.get("expected_fraction"),
        disturbance=value.get("disturbance", ""),
    )
