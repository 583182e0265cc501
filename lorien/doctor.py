"""Is this machine fit for tuning, and can the stores be used? Every finding that is bad says what to do."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from lorien.errors import LorienError, StoreUnavailable

BUSY_SHARE = 0.25
"""Load average per core from which on measured latencies are not to be trusted."""
FREE_BYTES = 2 << 30
"""Room that builds and logs of a session want."""
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Status(str, Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """What a check found; ``fix`` is what to do about it, empty when there is nothing to do."""

    check: str
    status: Status
    found: str
    fix: str = ""


def examine(*, logs: str | None = None, database: str | None = None, models: str | None = None) -> Iterator[Finding]:
    """Check the packages, this machine, that a candidate builds and runs on it, and the stores given.

    Parameters
    ----------
    logs, database, models : str, optional
        URLs of stores: read, and written where that leaves nothing behind.
    """
    yield Finding("Python", Status.OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from extras(requires("lorien") or [], metadata("lorien").get_all("Provides-Extra") or [])
    yield from machine()
    yield _guarded("measuring", _measuring)
    for check, url, use in (
        ("log store", logs, _use_logs),
        ("database", database, _use_database),
        ("model store", models, _use_models),
    ):
        if url is not None:
            yield _guarded(f"{check} {url}", use, url)


def extras(requirements: Sequence[str], names: Sequence[str]) -> Iterator[Finding]:
    """Whether the installed packages are those that Lorien and each of its extras want.

    An extra of which nothing is installed is only told of; other versions than those wanted are a failure.

    Parameters
    ----------
    requirements : sequence of str
        As a wheel's metadata lists them.
    names : sequence of str
        Extras among them.
    """
    for name in ["", *sorted(names)]:
        wanted = [Requirement(text) for text in requirements]
        # Those of other extras of Lorien itself are told of there.
        asked = [one for one in wanted if one.name != "lorien" and _applies(one, name)]
        found = {one: _installed(one.name) for one in asked}
        missing = [one.name for one, release in found.items() if release is None]
        clashing = [f"{one.name} {own}" for one, own in found.items() if own and own not in one.specifier]
        check = f"packages of lorien[{name}]" if name else "packages"
        install = f"pip install 'lorien[{name}]'" if name else "pip install lorien"
        if clashing:
            yield Finding(check, Status.FAILED, f"other versions than needed: {', '.join(clashing)}", install)
        elif missing:
            yield Finding(check, Status.WARNING if name else Status.FAILED, f"missing: {', '.join(missing)}", install)
        elif asked:
            yield Finding(check, Status.OK, ", ".join(f"{one.name} {release}" for one, release in found.items()))


def _applies(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if marker is None:
        return not extra
    return marker.evaluate({"extra": extra}) and not (extra and marker.evaluate({"extra": ""}))


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> Iterator[Finding]:
    """Caches, load, frequency and free space: what latencies depend on."""
    caches = ", ".join(f"L{level} {size}" for level, size in data_caches().items())
    yield Finding("caches", Status.OK, caches or "not known")
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    busy = load > BUSY_SHARE * cores
    fix = "stop other work while tuning: it changes what is measured" if busy else ""
    yield Finding("load", Status.WARNING if busy else Status.OK, f"{load:.2f} on {cores} CPUs", fix)
    if _GOVERNOR.exists():
        governor = _GOVERNOR.read_text().strip()
        slow = governor == "powersave"
        fix = "sudo cpupower frequency-set -g performance" if slow else ""
        yield Finding("CPU frequency", Status.WARNING if slow else Status.OK, governor, fix)
    free_bytes = shutil.disk_usage(tempfile.gettempdir()).free
    few = free_bytes < FREE_BYTES
    fix = "free space, or set TMPDIR to a larger disk" if few else ""
    yield Finding("temporary files", Status.WARNING if few else Status.OK, f"{free_bytes / 2**30:.1f} GiB free", fix)


def data_caches() -> dict[int, str]:
    """Size of the first core's data cache of each level, as Linux names it; empty where it cannot be read."""
    found = {}
    for index in sorted(_CACHES.glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            found[int((index / "level").read_text())] = (index / "size").read_text().strip()
    return found


def _guarded(check: str, use: Callable[..., str], *arguments: str) -> Finding:
    try:
        return Finding(check, Status.OK, use(*arguments))
    except (LorienError, OSError) as error:
        found, _, fix = str(error).partition(" Fix: ")
        return Finding(check, Status.FAILED, found, fix)


def _measuring() -> str:
    """Build and run the default schedule of a small matrix product as a tuning session would."""
    from lorien.dialects import resolve_target
    from lorien.dialects.metaschedule.probe import probe_workload
    from lorien.records import Candidate
    from lorien.tune.measure import MeasureConfig, Measurer

    target = resolve_target("native")
    with Measurer(target=target, dialect="metaschedule", config=MeasureConfig(builders=1)) as measurer:
        (measurement,) = measurer.measure(probe_workload(), [Candidate(None)])
    if measurement.latency_s is None:
        raise LorienError(
            f"a 64 x 64 matrix product does not run on {target}: {measurement.outcome.value} {measurement.detail}. "
            "Fix: install a C++ compiler (g++ or clang++), which links what TVM builds"
        )
    return f"{target}: a 64 x 64 matrix product, by default, takes {measurement.latency_s * 1e6:.0f} us"


def _use_logs(url: str) -> str:
    from lorien.logs import open_logs

    logs = sum(1 for _ in open_logs(url).list())
    return f"{logs:,} logs; {_write(url)}"


def _use_models(url: str) -> str:
    from lorien.models.store import open_models

    models = open_models(url).list()
    return f"{len(models):,} models; {_write(url)}"


def _use_database(url: str) -> str:
    from lorien.database import open_database

    with open_database(url, create=False) as database:
        stats = database.stats()
    return f"{stats.records:,} schedules of {stats.workloads:,} workloads"


def _write(url: str) -> str:
    """Write a file and take it away again."""
    scheme, found, path = url.partition("://")
    name = f".lorien-doctor-{uuid.uuid4().hex}"
    if found and scheme == "s3":
        from lorien.s3 import S3Folder

        folder = S3Folder(url)
        folder.write(name, b"", None)
        folder.delete([name])
        return "writable"
    place = Path(path if found else url)
    while not place.exists():  # it is made when it is needed, in the nearest folder there is
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise StoreUnavailable(f"{place} cannot be written. Fix: give another folder, or its permissions: chmod u+rwx")
    return "writable"
