"""Make the samples of real logs that ship in this folder, and their manifest.

    python datasets/make_sample.py metaschedule STORE... --question WORKLOADS --host "2 cores of an Intel Xeon"
    python datasets/make_sample.py more STORE... --question WORKLOADS --host "2 cores of an AMD EPYC (Zen 5)"
    python datasets/make_sample.py held_out STORE... --question WORKLOADS --host "2 cores of an AMD EPYC (Zen 3)"

A ``STORE`` is a log store that ``lorien tune`` wrote, such as ``tune_networks.sh`` makes for ``metaschedule`` and
``tune_more.sh`` for ``more``; ``held_out`` has networks that the corpus leaves out, to judge models by. Each of its
sessions is copied, compressed, beside those of other machines. ``WORKLOADS`` are those of squeezenet, which
``make demo`` asks about: a workload of these is left out, whatever network has it too, for a model that was trained on
it would know the answer.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
from pathlib import Path

from lorien.cli.workloads import read_workloads
from lorien.target import Target

LICENCE = "Apache-2.0"
WORKLOADS = "database_workload.json.gz"
RECORDS = "database_tuning_record.json.gz"
HERE = Path(__file__).parent


def read_lines(folder: Path, name: str) -> list[str]:
    """Lines of a file that may be gzip-compressed."""
    plain = folder / name.removesuffix(".gz")
    content = plain.read_bytes() if plain.exists() else gzip.decompress((folder / name).read_bytes())
    return content.decode().splitlines()


def write_lines(path: Path, lines: list[str]) -> None:
    """The same lines are the same bytes, whenever they are written."""
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def copy_session(source: Path, out: Path, host: str, asked: set[str]) -> dict[str, object] | None:
    """Copy a session without what is asked about. Gives its entry in the manifest, None when nothing is left."""
    workloads, records = read_lines(source, WORKLOADS), read_lines(source, RECORDS)
    measured = {json.loads(line)[0] for line in records}
    kept = [at for at, line in enumerate(workloads) if at in measured and json.loads(line)[0] not in asked]
    if not kept:
        return None
    place = {at: index for index, at in enumerate(kept)}
    lines = []
    for line in records:
        at, record = json.loads(line)
        if at in place:
            lines.append(json.dumps([place[at], record], separators=(",", ":")))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    write_lines(out / WORKLOADS, [workloads[at] for at in kept])
    write_lines(out / RECORDS, lines)
    about = json.loads((source / "lorien.json").read_text())
    # The definitions are in the workload file already; the machine's own name tells a reader nothing.
    names = ("dialect", "target", "framework", "network", "started_s")
    tasks = [about["tasks"][at] for at in kept]
    (out / "lorien.json").write_text(json.dumps({**{n: about[n] for n in names}, "tasks": tasks, "host": host}) + "\n")
    return {
        "path": out.relative_to(HERE).as_posix(),
        "dialect": "metaschedule",
        "target": about["target"],
        "host": host,
        "framework": about["framework"],
        "networks": sorted({network for task in tasks for network in task["networks"]}),
        "source": "measured for Lorien",
        "licence": LICENCE,
        "workloads": len(kept),
        "records": len(lines),
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir())},
    }


def main() -> None:
    """Copy the sessions, and bring ``manifest.json`` beside this file up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("metaschedule", "more", "held_out"))
    parser.add_argument("stores", type=Path, nargs="+", metavar="STORE")
    parser.add_argument("--question", type=Path, required=True, metavar="WORKLOADS")
    parser.add_argument("--host", required=True, help="the machine that they were measured on, for people")
    arguments = parser.parse_args()
    asked = {workload.identity[1] for workload in read_workloads(arguments.question)}
    entries = []
    for session in sorted(path for store in arguments.stores for path in (store / "sessions").iterdir()):
        network, _, digest = session.name.rpartition("-")
        target = Target.parse(json.loads((session / "lorien.json").read_text())["target"])
        name = digest if arguments.part == "more" else network
        if entry := copy_session(session, HERE / arguments.part / target.key / name, arguments.host, asked):
            entries.append(entry)
    paths = {entry["path"] for entry in entries}
    known = json.loads((HERE / "manifest.json").read_text())["logs"]
    entries += [entry for entry in known if entry["path"] not in paths and (HERE / entry["path"]).exists()]
    entries.sort(key=lambda entry: str(entry["path"]))
    manifest = {"version": 1, "made_by": "python datasets/make_sample.py", "logs": entries}
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
