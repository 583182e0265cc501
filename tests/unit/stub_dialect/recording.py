"""The misbehaving dialect with a native log of JSON lines; ``{"run": 0.5}`` runs in half a second, without waiting."""

import json

from misbehaving import MisbehavingDialect

from lorien.records import Candidate, Measurement, Outcome, TuningRecord, Workload
from lorien.target import Target


class RecordingDialect(MisbehavingDialect):
    name = "recording"

    def framework(self):
        return "recording 1"

    def find(self, path):
        if (path / "records.jsonl").exists():
            yield path

    def files(self, log):
        return [log / "workloads.jsonl", log / "records.jsonl"]

    def read(self, log, info, report, shard=(0, 1)):
        workloads = [
            Workload.from_json(json.loads(line)) for line in (log / "workloads.jsonl").read_text().splitlines()
        ]
        for number, line in enumerate((log / "records.jsonl").read_bytes().splitlines()):
            try:
                index, schedule, latencies_s = json.loads(line)
            except ValueError as error:
                report.bad(f"records.jsonl:{number + 1}", str(error))
                continue
            measured = Measurement(Outcome.OK if latencies_s else Outcome.UNKNOWN_ERROR, tuple(latencies_s))
            record = TuningRecord(
                workloads[index], info.target or Target("llvm"), Candidate(schedule), measured, "recording 1"
            )
            report.saw(record)
            yield record

    def log_writer(self, workloads, target):
        return RecordingWriter(workloads)


class RecordingWriter:
    workload_file = "workloads.jsonl"
    record_file = "records.jsonl"

    def __init__(self, workloads):
        self._workloads = workloads

    def workload_lines(self):
        return "".join(json.dumps(workload.to_json()) + "\n" for workload in self._workloads).encode()

    def record_line(self, index, candidate, measurement):
        return json.dumps([index, candidate.schedule, list(measurement.latencies_s)]).encode() + b"\n"
