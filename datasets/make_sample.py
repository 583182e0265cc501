"""Make the sample of real logs that ships in this folder, and its manifest.

    python datasets/make_sample.py LOGS

``LOGS`` is a folder ``<target>/<network>/`` of MetaSchedule JSON databases, each with its ``lorien.json``. Every network
but squeezenet is copied: squeezenet is what ``make demo`` asks about, so nothing of it may be trained on. Workloads
that squeezenet shares with a copied network are left out of the copies, with their records, for the same reason.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
from pathlib import Path

QUESTION = "squeezenet"
LICENCE = "Apache-2.0"
WORKLOADS = "database_workload.json.gz"
RECORDS = "database_tuning_record.json.gz"
HERE = Path(__file__).parent


def read_lines(path: Path) -> list[str]:
    """Lines of a gzip text file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line for line in file.read().splitlines() if line]


def write_lines(path: Path, lines: list[str]) -> None:
    """The same bytes for the same lines: no time stamp in the gzip header."""
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode(), compresslevel=9, mtime=0))


def copy_network(source: Path, out: Path, excluded_hashes: set[str]) -> dict[str, object]:
    """Copy one database folder without the excluded workloads; returns its entry in the manifest."""
    out.mkdir(parents=True)
    workloads, records = read_lines(source / WORKLOADS), read_lines(source / RECORDS)
    kept = [index for index, line in enumerate(workloads) if json.loads(line)[0] not in excluded_hashes]
    renumbered = {old: new for new, old in enumerate(kept)}
    kept_records = []
    for line in records:
        index, record = json.loads(line)
        if index in renumbered:
            # Only the number in front changes: the record itself stays as TVM wrote it.
            kept_records.append(f"[{renumbered[index]},{line.split(',', 1)[1]}")
    write_lines(out / WORKLOADS, [workloads[index] for index in kept])
    write_lines(out / RECORDS, kept_records)
    shutil.copyfile(source / "lorien.json", out / "lorien.json")
    about = json.loads((source / "lorien.json").read_text())
    return {
        "path": out.relative_to(HERE).as_posix(),
        "dialect": "metaschedule",
        "target": about["target"],
        "host": about["host"],
        "framework": about["framework"],
        "network": about["network"],
        "model": about["model"],
        "source": "measured for Lorien",
        "licence": LICENCE,
        "workloads": len(kept),
        "records": len(kept_records),
        "left_out_workloads": len(workloads) - len(kept),
        "sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir()) if file.is_file()
        },
    }


def main() -> None:
    """Write ``metaschedule/`` and ``manifest.json`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path)
    logs: Path = parser.parse_args().logs
    shutil.rmtree(HERE / "metaschedule", ignore_errors=True)
    entries = []
    for target in sorted(path for path in logs.iterdir() if path.is_dir()):
        asked = {json.loads(line)[0] for line in read_lines(target / QUESTION / WORKLOADS)}
        for network in sorted(path for path in target.iterdir() if path.is_dir() and path.name != QUESTION):
            entries.append(copy_network(network, HERE / "metaschedule" / target.name / network.name, asked))
    manifest = {"version": 1, "made_by": "python datasets/make_sample.py LOGS", "logs": entries}
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
