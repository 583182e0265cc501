"""Make the samples of real logs that ship in this folder, and their manifest.

    python datasets/make_sample.py LOGS
    python datasets/make_sample.py LOGS --more STORE --host "2 cores of an AMD EPYC (Zen 5)"

``LOGS`` is a folder ``<target>/<network>/`` of MetaSchedule JSON databases, each with its ``lorien.json``. Every
network but squeezenet is copied as it is: squeezenet is what ``make demo`` asks about, so nothing of it may be trained
on. The sessions of ``STORE``, a log store such as ``tune_more.sh`` writes, go to ``more/`` beside those of other
machines. A log that shares a workload with squeezenet stops the script.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import sys
from pathlib import Path

from lorien.target import Target

QUESTION = "squeezenet"
LICENCE = "Apache-2.0"
WORKLOADS = "database_workload.json.gz"
RECORDS = "database_tuning_record.json.gz"
HERE = Path(__file__).parent


def content(folder: Path, name: str) -> bytes:
    """A file that may be gzip-compressed."""
    plain = folder / name.removesuffix(".gz")
    return plain.read_bytes() if plain.exists() else gzip.decompress((folder / name).read_bytes())


def read_lines(folder: Path, name: str) -> list[str]:
    """Lines of such a file."""
    return content(folder, name).decode().splitlines()


def workload_hashes(folder: Path) -> set[str]:
    """Structural hashes of the workloads of a database folder."""
    return {json.loads(line)[0] for line in read_lines(folder, WORKLOADS)}


def copy_network(source: Path, out: Path) -> dict[str, object]:
    """Copy one database folder; returns its entry in the manifest."""
    out.mkdir(parents=True)
    for name in (WORKLOADS, RECORDS, "lorien.json"):
        shutil.copyfile(source / name, out / name)
    about = json.loads((source / "lorien.json").read_text())
    return entry(out, {name: about[name] for name in ("target", "host", "framework", "network", "model")})


def copy_session(source: Path, out: Path, host: str) -> dict[str, object]:
    """Copy one session of ``lorien tune``, compressed; returns its entry in the manifest."""
    out.mkdir(parents=True)
    for name in (WORKLOADS, RECORDS):
        (out / name).write_bytes(gzip.compress(content(source, name), mtime=0))
    about = json.loads((source / "lorien.json").read_text())
    # The definitions are in the workload file already; the machine's own name tells a reader nothing.
    kept = {name: about[name] for name in ("dialect", "target", "framework", "network", "started_s", "tasks")}
    (out / "lorien.json").write_text(json.dumps({**kept, "host": host}) + "\n")
    networks = sorted({network for task in about["tasks"] for network in task["networks"]})
    return entry(out, {"target": about["target"], "host": host, "framework": about["framework"], "networks": networks})


def entry(out: Path, about: dict[str, object]) -> dict[str, object]:
    """What the manifest says of a folder that was copied."""
    records = read_lines(out, RECORDS)
    return {
        "path": out.relative_to(HERE).as_posix(),
        "dialect": "metaschedule",
        **about,
        "source": "measured for Lorien",
        "licence": LICENCE,
        # Of those that have a record: a run cut short leaves workloads that were never measured.
        "workloads": len({json.loads(line)[0] for line in records}),
        "records": len(records),
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir())},
    }


def main() -> None:
    """Write ``metaschedule/``, ``more/`` where asked for, and ``manifest.json`` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path)
    parser.add_argument("--more", type=Path, metavar="STORE")
    parser.add_argument("--host", default="unknown", help="the machine that STORE was measured on, for people")
    arguments = parser.parse_args()
    shutil.rmtree(HERE / "metaschedule", ignore_errors=True)
    entries = []
    asked: set[str] = set()
    for target in sorted(path for path in arguments.logs.iterdir() if path.is_dir()):
        asked |= workload_hashes(target / QUESTION)
        for network in sorted(path for path in target.iterdir() if path.is_dir() and path.name != QUESTION):
            if asked & workload_hashes(network):
                sys.exit(f"{network} shares a workload with {QUESTION}: training on it would leak")
            entries.append(copy_network(network, HERE / "metaschedule" / target.name / network.name))
    sessions = sorted((arguments.more / "sessions").iterdir()) if arguments.more else []
    for session in sessions:
        if asked & workload_hashes(session):
            sys.exit(f"{session} shares a workload with {QUESTION}: training on it would leak")
        about = json.loads((session / "lorien.json").read_text())
        out = HERE / "more" / Target.parse(about["target"]).key / session.name.rpartition("-")[2]
        shutil.rmtree(out, ignore_errors=True)
        entries.append(copy_session(session, out, arguments.host))
    paths = {entry["path"] for entry in entries}
    known = json.loads((HERE / "manifest.json").read_text())["logs"]
    entries += [entry for entry in known if entry["path"].startswith("more/") and entry["path"] not in paths]
    entries.sort(key=lambda entry: str(entry["path"]))
    manifest = {"version": 1, "made_by": "python datasets/make_sample.py LOGS --more STORE", "logs": entries}
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
