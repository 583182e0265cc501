"""The logs that ship, cut short: real records, and few enough for a test."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "datasets" / "plain" / "llvm_znver4_2"


def cut_short(folder: Path, networks: Mapping[str, int], records: int) -> None:
    """Lay out a folder as ``datasets/metaschedule``: so many workloads of each network, so many records of each."""
    for network, workloads in networks.items():
        given, cut = SHIPPED / network, folder / SHIPPED.name / network
        cut.mkdir(parents=True)
        for name in ("lorien.json", "database_workload.json.gz"):
            shutil.copy(given / name, cut)
        kept: dict[int, list[str]] = {}
        with gzip.open(given / "database_tuning_record.json.gz", "rt") as lines:
            for line in lines:
                own = kept.setdefault(json.loads(line)[0], [])
                if len(own) < records:
                    own.append(line)
        with gzip.open(cut / "database_tuning_record.json.gz", "wt") as lines:
            lines.writelines(line for own in list(kept.values())[:workloads] for line in own)
