"""Every reader of what strangers write, over damaged inputs: no traceback, no crash, bounded time and memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parents[1] / "fuzz_readers.py"
INPUTS = {
    "auto_scheduler": 40,
    "autotvm": 40,
    "halide": 30,
    "metaschedule": 12,
    "metaschedule_legacy": 30,
    "sidecar": 40,
    "targets": 400,
    "workloads": 400,
}
MEMORY_BYTES = 8 << 30


@pytest.mark.parametrize("reader", sorted(INPUTS))
def test_damaged_input_costs_itself_alone(reader: str) -> None:
    # LORIEN_FUZZ=SEED tries others, ten times as many.
    seed = int(os.environ.get("LORIEN_FUZZ", "0"))
    count = INPUTS[reader] * (10 if seed else 1)
    done = subprocess.run(
        [sys.executable, str(FUZZER), str(seed), str(count), reader],
        capture_output=True,
        text=True,
        timeout=250 * (10 if seed else 1),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES)),
    )
    assert done.returncode == 0, f"the last of these brought the process down:\n{done.stderr[-300:]}"
    assert done.stdout.splitlines()[-1] == "0 failures", done.stdout[-3000:]
