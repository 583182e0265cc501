"""The sample of logs that ships is what its manifest says, and reads without a bad line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lorien.dialects import open_dialect
from lorien.dialects.base import LogInfo, ReadReport

DATASETS = Path(__file__).parents[2] / "datasets"
MANIFEST = json.loads((DATASETS / "manifest.json").read_text())


def test_the_manifest_names_every_file_and_its_digest() -> None:
    listed = {
        DATASETS / entry["path"] / name: digest
        for entry in MANIFEST["logs"]
        for name, digest in entry["sha256"].items()
    }
    folders = (DATASETS / name for name in ("metaschedule", "more", "plain", "held_out"))
    there = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert set(listed) == there
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in there} == listed
    assert sum(path.stat().st_size for path in there) < 25e6
    assert all(entry["licence"] and entry["source"] and entry["target"] for entry in MANIFEST["logs"])


def test_every_record_reads() -> None:
    dialect = open_dialect("metaschedule")
    for entry in MANIFEST["logs"]:
        report = ReadReport()
        workloads = {r.workload.key for r in dialect.read(DATASETS / entry["path"], LogInfo(), report)}
        assert (report.records, report.unreadable) == (entry["records"], 0)
        assert len(workloads) == entry["workloads"]
