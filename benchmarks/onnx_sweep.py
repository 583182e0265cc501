"""What ``lorien extract`` makes of each model of ONNX's own backend tests: lowered, cut, refused, or worse.

    python benchmarks/onnx_sweep.py --json sweep.json

The models are those of the ``onnx`` package: about 1,900 of one operator or a few, 150 exports of old PyTorch layers
and small networks, 9 image networks. Each is lowered in a child process, so that a crash is a result.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing import get_context
from pathlib import Path

import onnx
from pebble import ProcessExpired, ProcessPool

TIMEOUT_S = 600.0
TARGET = "llvm"


def main() -> None:
    """Sweep and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="File of one result per model.")
    parser.add_argument("--match", default="", help="Only models whose name contains this text.")
    parser.add_argument("--jobs", type=int, default=2, help="Child processes.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = [path for path in write_models(Path(folder)) if options.match in path.stem]
        results = list(sweep(models, options.jobs))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    print(f"{len(results)} models: {dict(Counter(str(result['outcome']) for result in results))}")
    for result in results:
        if result["outcome"] in ("traceback", "crash", "timeout"):
            print(f"{result['outcome']}: {result['model']}: {result['said']}")


def write_models(folder: Path) -> Iterator[Path]:
    """Each model as a file; open inputs get the shapes of the test's first data set."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        path = folder / f"{case.name}.onnx"
        path.write_bytes(case.model.SerializeToString())
        yield path
    yield from sorted((Path(onnx.__file__).parent / "backend" / "test" / "data").rglob("*.onnx"))


def sweep(models: list[Path], jobs: int) -> Iterator[dict[str, object]]:
    """The outcome of each model."""
    import tvm  # noqa: F401  loaded once, children are forks

    with ProcessPool(jobs, context=get_context("fork")) as pool:
        futures = [pool.schedule(attempt, args=[model], timeout=TIMEOUT_S) for model in models]
        for model, future in zip(models, futures, strict=True):
            name = f"{model.parent.name}/{model.stem}"
            try:
                yield {"model": name, **future.result()}
            except FutureTimeoutError:
                yield {"model": name, "outcome": "timeout", "said": f"over {TIMEOUT_S} s"}
            except ProcessExpired as error:
                yield {"model": name, "outcome": "crash", "said": str(error)}


def attempt(model: Path) -> dict[str, object]:
    """Extract one model, in a child."""
    from lorien.dialects.metaschedule.extract import extract_workloads
    from lorien.errors import BadInput
    from lorien.target import Target

    said = _Said()
    logger = logging.getLogger("lorien")
    logger.addHandler(said)
    started_s = time.monotonic()
    workloads = []
    try:
        workloads = extract_workloads(model, Target(TARGET))
        outcome = "cut" if any("left out" in line for line in said.lines) else "whole"
        if not workloads:
            outcome += ", no workload"
    except BadInput as error:
        outcome = "refused"
        said.lines.append(str(error))
    except Exception as error:
        outcome = "traceback"
        said.lines.append(f"{type(error).__name__}: {error}"[:500])
    finally:
        logger.removeHandler(said)
    return {
        "outcome": outcome,
        "workloads": len(workloads),
        "said": said.lines,
        "seconds": round(time.monotonic() - started_s, 2),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


class _Said(logging.Handler):
    """Warnings that a user would see."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


if __name__ == "__main__":
    main()
