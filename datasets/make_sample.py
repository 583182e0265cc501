"""Make the sample of real logs that ships in this folder, and its manifest.

    python datasets/make_sample.py LOGS

``LOGS`` is a folder ``<target>/<network>/`` of MetaSchedule JSON databases, each with its ``lorien.json``. Every
network but squeezenet is copied as it is: squeezenet is what ``make demo`` asks about, so nothing of it may be trained
on. A network that shares a workload with squeezenet stops the script.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import sys
from pathlib import Path

QUESTION = "squeezenet"
LICENCE = "Apache-2.0"
WORKLOADS = "database_workload.json.gz"
RECORDS = "database_tuning_record.json.gz"
HERE = Path(__file__).parent


def read_lines(path: Path) -> list[str]:
    """Lines of a gzip text file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def workload_hashes(network: Path) -> set[str]:
    """Structural hashes of the workloads of a database folder."""
    return {json.loads(line)[0] for line in read_lines(network / WORKLOADS)}


def copy_network(source: Path, out: Path) -> dict[str, object]:
    """Copy one database folder; returns its entry in the manifest."""
    out.mkdir(parents=True)
    for name in (WORKLOADS, RECORDS, "lorien.json"):
        shutil.copyfile(source / name, out / name)
    about = json.loads((source / "lorien.json").read_text())
    records = read_lines(out / RECORDS)
    return {
        "path": out.relative_to(HERE).as_posix(),
        "dialect": "metaschedule",
        **{name: about[name] for name in ("target", "host", "framework", "network", "model")},
        "source": "measured for Lorien",
        "licence": LICENCE,
        # Of those that have a record: a run cut short leaves workloads that were never measured.
        "workloads": len({json.loads(line)[0] for line in records}),
        "records": len(records),
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir())},
    }


def main() -> None:
    """Write ``metaschedule/`` and ``manifest.json`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path)
    logs: Path = parser.parse_args().logs
    shutil.rmtree(HERE / "metaschedule", ignore_errors=True)
    entries = []
    for target in sorted(path for path in logs.iterdir() if path.is_dir()):
        asked = workload_hashes(target / QUESTION)
        for network in sorted(path for path in target.iterdir() if path.is_dir() and path.name != QUESTION):
            if asked & workload_hashes(network):
                sys.exit(f"{network} shares a workload with {QUESTION}: training on it would leak")
            entries.append(copy_network(network, HERE / "metaschedule" / target.name / network.name))
    manifest = {"version": 1, "made_by": "python datasets/make_sample.py LOGS", "logs": entries}
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
