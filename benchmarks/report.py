"""How large the page of a report is, what it costs to make, and how soon it opens and filters in a browser.

    python benchmarks/report.py

Feature tables and a schedule database are made up (``tests/reports.py``): records on two targets, a tenth of them
failed, and a schedule of some two thousand characters for each of the first 2,000 workloads. The page is opened five
times by Chromium without a window, each time in a fresh profile; the seconds are the browser's own, from the beginning
of the navigation to a table that shows the workloads of two words typed into its filter. Needs Chromium and playwright.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import BIN, machine, markdown

from lorien.database import open_database

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import reports

SIZES = ((1_000, 16), (10_000, 16), (10_000, 160), (20_000, 16))
SCHEDULES = 2_000
TURNS = 5
FILTERED_MS = """([id, words]) => {
  const started = performance.now(), field = document.getElementById(id);
  field.value = words; field.dispatchEvent(new Event("input"));
  document.getElementById("rows").getBoundingClientRect();
  return performance.now() - started; }"""


def made(folder: Path) -> tuple[float, float, int]:
    """Seconds and peak MiB of ``lorien report``, and bytes of its page."""
    command = [BIN / "lorien", "report", folder / "features", f"sqlite:///{folder}/s.db", "-o", folder / "report.html"]
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    started_s = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, *command], check=True, stdout=subprocess.PIPE)
    seconds = time.perf_counter() - started_s
    return seconds, int(done.stdout) / 1024, (folder / "report.html").stat().st_size


def opened(page: Path) -> tuple[list[float], list[float]]:
    """Seconds to a filtered table from the beginning of the navigation, and of another filter afterwards."""
    whole, again = [], []
    with reports.browser() as running:
        for _ in range(TURNS):
            with reports.visit(running, page.as_uri(), ready="#rows tr") as seen:
                seen.page.evaluate(FILTERED_MS, ["words", "network3 1x16x"])
                whole.append(seen.page.evaluate("performance.now()") / 1000)
                again.append(seen.page.evaluate(FILTERED_MS, ["words", "network5"]) / 1000)
                if seen.complaints:
                    sys.exit(f"the page complains: {seen.complaints}")
    return whole, again


def main() -> None:
    """Print the table."""
    rows = []
    for workloads, trials in SIZES:
        with tempfile.TemporaryDirectory(prefix="lorien-report-") as temporary:
            folder = Path(temporary)
            records = reports.write_tables(folder / "features", workloads, trials)
            with open_database(f"sqlite:///{folder}/s.db") as database:
                database.put_many(reports.schedules(min(SCHEDULES, workloads)))
            seconds, peak_mib, size_bytes = made(folder)
            whole, again = opened(folder / "report.html")
        rows.append(
            [
                f"{workloads:,}",
                f"{records:,}",
                f"{seconds:.1f}",
                f"{peak_mib:.0f}",
                f"{size_bytes / 1e6:.2f}",
                f"{statistics.median(whole):.2f} ({max(whole):.2f})",
                f"{1000 * statistics.median(again):.0f}",
            ]
        )
    print(machine())
    columns = [
        "workloads",
        "records",
        "made in s",
        "peak MiB",
        "page MB",
        "open and filter s (worst)",
        "filter again ms",
    ]
    print(markdown(columns, rows))


if __name__ == "__main__":
    main()
