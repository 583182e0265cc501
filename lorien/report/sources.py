"""What a report is made of: which kind each input is, and what is read of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import orjson

from lorien.database import open_database
from lorien.database.jobs import Counts, JobState, Run, open_jobs
from lorien.database.queue import find_run
from lorien.dialects import names, open_dialect
from lorien.dialects.base import ReadReport
from lorien.errors import BadInput, LorienError
from lorien.featurize.dataset import CONTENTS, TABLES, files_below, missing_tables
from lorien.featurize.store import open_tables
from lorien.logs import open_logs
from lorien.logs.base import DETAILS, SESSIONS, SIDECAR, info_of, read_sidecar
from lorien.logs.walk import LogWalk
from lorien.models.store import Model, open_models
from lorien.plausible import doubt_of
from lorien.records import Json, Measurement, TuningRecord
from lorien.report.judge import Judgement, judge
from lorien.report.peak import Peak
from lorien.report.tally import Key, Tally, TargetTally, WorkloadTally, shared_out
from lorien.s3 import S3Folder

_SQLITE = b"SQLite format 3\0"


class Kind(str, Enum):
    """What an input is."""

    FEATURES = "feature tables"
    MODELS = "models"
    DATABASE = "schedule database"
    LOG = "tuning session"
    LOGS = "log store"
    RUN = "run of jobs"


@dataclass(frozen=True)
class Source:
    """An input: what it is, and where."""

    kind: Kind
    url: str


@dataclass(frozen=True)
class Schedule:
    """The fastest schedule known of a workload: seconds, operations of one run, what measured it, and its log."""

    latency_s: float
    flop: float | None
    schedule: Json = field(repr=False)
    build: str
    log: str | None


@dataclass
class SessionCard:
    """A tuning session: how long it took, and for what.

    ``started_s`` and ``ended_s`` are Unix times, ``build_s`` the CPU seconds of its builds; 0 where not known.
    """

    name: str
    dialect: str
    target: str
    workloads: int
    outcomes: Counter[str] = field(default_factory=Counter)
    started_s: float = 0.0
    ended_s: float = 0.0
    build_s: float = 0.0


@dataclass(frozen=True)
class RunCard:
    """A run of jobs as it was when the report was made."""

    run: Run
    counts: Counts
    troubled: list[JobState]
    """Jobs that ended with an error, at most some."""


@dataclass
class Report:
    """All that a page shows."""

    title: str
    created_s: float
    sources: list[Source] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    schedules: dict[Key, Schedule] = field(default_factory=dict)
    models: list[Model] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    sessions: list[SessionCard] = field(default_factory=list)
    runs: list[RunCard] = field(default_factory=list)
    peaks: dict[str, Peak] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


MAX_TROUBLED = 50


def source_of(text: str, db: str | None) -> Source:
    """What an input is, told by its scheme and by what lies there; a name alone is a run of jobs in ``db``.

    Raises
    ------
    BadInput
        It is nothing that can be reported on.
    StoreUnavailable
        S3 cannot be read.
    """
    scheme, found, rest = text.partition("://")
    if found and scheme in ("sqlite", "dynamodb"):
        return Source(Kind.DATABASE, text)
    if found and scheme == "s3":
        return Source(_kind_of_names(name for page in S3Folder(text).pages() for name in page) or _nothing(text), text)
    path = Path(rest if found and scheme == "file" else text)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_SQLITE)) == _SQLITE:
                return Source(Kind.DATABASE, f"sqlite:///{path}")
    elif (path / SIDECAR).is_file():
        return Source(Kind.LOG, str(path))
    elif path.is_dir():
        files = (found.relative_to(path).as_posix() for found in files_below(path, "*"))
        return Source(_kind_of_names(files) or _nothing(text), str(path))
    elif db is not None and not found:
        return Source(Kind.RUN, text)
    raise _unknown(text)


def _kind_of_names(names: Iterable[str]) -> Kind | None:
    """What a folder holds, told by the names in it."""
    for name in names:
        last = name.rpartition("/")[2]
        if last == "model.json" and name.count("/") == 2:
            return Kind.MODELS
        if fnmatch(last, TABLES) or fnmatch(last, CONTENTS):
            return Kind.FEATURES
        if last == SIDECAR:
            return Kind.LOGS
    return None


def _nothing(text: str) -> Kind:
    raise _unknown(text)


def _unknown(text: str) -> BadInput:
    return BadInput(
        f"{text} is neither feature tables, models, a database, a log store nor a tuning session. "
        "Fix: give what lorien featurize, lorien-train, lorien commit, lorien ingest or lorien tune wrote; "
        "of a run of jobs its name, and --db URL"
    )


def gather(report: Report, *, db: str | None = None, logs: str | None = None) -> None:
    """Read all sources of a report into it.

    Where several tell of the same workload, the one with more records is counted: no record counts twice. The
    latencies of a target are those of the one with more records of it.

    Parameters
    ----------
    report : Report
        Its ``sources`` are read.
    db : str, optional
        Database of the runs.
    logs : str, optional
        Log store of the runs, where their sessions grow.

    Raises
    ------
    LorienError
        A source cannot be read.
    """
    told = Tally()
    urls = {kind: [source.url for source in report.sources if source.kind is kind] for kind in Kind}
    for url in urls[Kind.MODELS]:
        store = open_models(url)
        stored = (store.read(*one) for one in store.list())
        report.models += [one.model for one in stored if one is not None]
    for url in urls[Kind.FEATURES]:
        with open_tables(url).local() as folder:
            _merge(report.tally, Tally.of_tables(folder))
            report.problems += chain.from_iterable(missing_tables(folder, url).values())
            problems: list[str] = []
            for models in urls[Kind.MODELS]:
                report.judgements += judge(folder, models, problems)
            report.problems += [problem.replace(str(folder), url) for problem in problems]
    for url in urls[Kind.LOG]:
        card, records = _session(Path(url), report)
        report.sessions.append(card)
        told.take(records)
    for url in urls[Kind.LOGS]:
        told.take(_stored(url, report))
    for name in urls[Kind.RUN]:
        _take_run(report, told, name, db or "", logs)
    for url in urls[Kind.DATABASE]:
        with open_database(url, create=False) as database:
            for record in database.query():
                _offer(report, record)
    _merge(report.tally, told)
    for key, own in told.workloads.items():
        if own.schedule is not None and own.steps:
            build = ", ".join(sorted(own.builds))
            _offer_schedule(report, key, Schedule(own.best_s, own.flop, own.schedule, build, own.log))


def _offer(report: Report, record: TuningRecord) -> None:
    """A record of a database: its workload is known, its schedule stays when it is the fastest."""
    workload, latency_s = record.workload, record.measurement.latency_s
    if latency_s is None:
        return
    key = (workload.dialect, record.target.key, workload.key)
    own = report.tally.workloads.setdefault(key, WorkloadTally(*key, workload.name, workload.flop))
    own.weights |= {network: own.weights.get(network, 1.0) for network in workload.networks}
    own.builds.add(record.build)
    schedule = Schedule(latency_s, workload.flop, record.candidate.schedule, record.build, record.log)
    _offer_schedule(report, key, schedule)


def _offer_schedule(report: Report, key: Key, schedule: Schedule) -> None:
    known = report.schedules.get(key)
    if known is None or schedule.latency_s < known.latency_s:
        report.schedules[key] = schedule


def _merge(into: Tally, other: Tally) -> None:
    """Add a tally: of a workload in both, the one with more records stays; targets likewise."""
    for key, own in other.workloads.items():
        known = into.workloads.get(key)
        if known is None or own.trials > known.trials:
            into.workloads[key] = own
        kept = into.workloads[key]
        kept.flop = kept.flop if kept.flop is not None else own.flop
        kept.weights = own.weights | (known.weights if known else {})
    for place, target in other.targets.items():
        if place not in into.targets or target.records > into.targets[place].records:
            into.targets[place] = target


def _session(folder: Path, report: Report) -> tuple[SessionCard, Iterator[TuningRecord]]:
    """A session, or any log with its sidecar: a card that fills as the records are read, with their details."""
    sidecar = read_sidecar(folder)
    info = info_of(sidecar, folder / SIDECAR)
    named = sidecar.get("dialect") or next((name for name in names() if any(open_dialect(name).find(folder))), "none")
    dialect = open_dialect(str(named))
    card = SessionCard(
        folder.resolve().name,
        dialect.name,
        info.target.key if info.target else "",
        len(sidecar.get("workloads") or info.weights),
        started_s=float(sidecar.get("started_s") or 0.0),
    )

    def records() -> Iterator[TuningRecord]:
        read = ReadReport()
        for record in _plausible(detailed(dialect.read(folder, info, read), folder / DETAILS), read):
            measured = record.measurement
            card.outcomes[measured.outcome.value] += 1
            card.build_s += measured.build_s
            card.ended_s = max(card.ended_s, measured.timestamp_s)
            yield record
        _skipped(report, str(folder), read)

    return card, records()


def detailed(records: Iterable[TuningRecord], details: Path) -> Iterator[TuningRecord]:
    """Records with their measurements in full, where a session's ``details.jsonl`` agrees that they ran, or did not."""
    told = _details(details)
    number, measurement = next(told, (math.inf, None))
    for place, record in enumerate(records):
        found = None
        while number <= place:
            found = measurement if number == place else None
            number, measurement = next(told, (math.inf, None))
        yield record if found is None or found.ok != record.measurement.ok else replace(record, measurement=found)


def _details(path: Path) -> Iterator[tuple[float, Measurement | None]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                value = orjson.loads(line)
                yield int(value["record"]), Measurement.from_json(value)


def _stored(url: str, report: Report) -> Iterator[TuningRecord]:
    """The records of all logs of a store; where it has none yet, of the logs and sessions that lie below the folder."""
    store = open_logs(url)
    walk = LogWalk(store)
    for log in walk:
        read = ReadReport()
        for record in _plausible(walk.read(log, read), read):
            yield replace(record, log=log.id)
        _skipped(report, log.id, read)
    if not walk.total and not url.startswith("s3://"):
        for sidecar in sorted(Path(url.removeprefix("file://")).rglob(SIDECAR)):
            yield from _session(sidecar.parent, report)[1]


def _plausible(records: Iterable[TuningRecord], read: ReadReport) -> Iterator[TuningRecord]:
    """Those whose latencies can be true; the others count as records that cannot be read."""
    for record in records:
        if why := doubt_of(record):
            read.bad(record.workload.name, why)
        else:
            yield record


def _skipped(report: Report, where: str, read: ReadReport) -> None:
    if read.unreadable:
        report.problems.append(f"{where}: {read.unreadable} records cannot be read, the first: {read.reasons[0]}")


def _take_run(report: Report, told: Tally, name: str, db: str, logs: str | None) -> None:
    """A run of jobs: its states, the schedules of its workloads, and its trials where the log store is known."""
    with open_jobs(db, create=False) as jobs, open_database(db, create=False) as database:
        run = find_run(jobs, name)
        wanted: dict[tuple[str, str], int] = {}
        sealed: dict[tuple[str, str], int] = {}
        troubled: list[JobState] = []
        for state in jobs.states(name):
            job = jobs.job(name, state.number)
            wanted |= {(state.target, workload.key): state.number for workload in job.workloads}
            if state.sealed:
                sealed[state.target, state.sealed] = state.number
            if state.error is not None and len(troubled) < MAX_TROUBLED:
                troubled.append(state)
            for workload in job.workloads:
                key = (workload.dialect, state.target, workload.key)
                own = WorkloadTally(*key, workload.name, workload.flop)
                own.weights = shared_out(workload)
                told.workloads.setdefault(key, own)
                told.targets.setdefault(key[:2], TargetTally(*key[:2]))
                for record in database.best(job.target, workload.key):
                    _offer(report, record)
        report.runs.append(RunCard(run, jobs.counts(name, report.created_s), troubled))
    if logs is None:
        report.problems.append(f"run {name}: its trials are in its log store. Fix: --logs URL shows them too")
        return
    told.take(_run_records(report, run, wanted, sealed, logs))


def _run_records(
    report: Report, run: Run, wanted: dict[tuple[str, str], int], sealed: dict[tuple[str, str], int], logs: str
) -> Iterator[TuningRecord]:
    """The trials of a run: of jobs that are done in the log store, of the others in their sessions."""
    store = open_logs(logs)
    published = set()
    walk = LogWalk(store)
    for log in walk:
        # Folders of sessions are named alike in every run: the time and the workloads tell the runs apart.
        if (log.target.key, log.job or "") in sealed and (log.started_s or run.created_s) >= run.created_s:
            published.add(sealed[log.target.key, log.job or ""])
            read = ReadReport()
            for record in _plausible(walk.read(log, read), read):
                if (record.target.key, record.workload.key) in wanted:
                    yield replace(record, log=log.id)
            _skipped(report, log.id, read)
    if logs.startswith("s3://"):
        report.problems.append(f"run {run.name}: jobs that are not done have their sessions with their workers")
        return
    newest: dict[str, Path] = {}
    for folder in Path(logs.removeprefix("file://"), SESSIONS, run.name).glob("*.*"):
        number, _, token = folder.name.partition(".")
        before = newest.get(number)
        if not (number.isdecimal() and token.isdecimal()) or int(number) in published:
            continue
        if (folder / SIDECAR).is_file():
            newest[number] = folder if before is None else max(before, folder, key=_token)
    for folder in newest.values():
        # One that ends while it is read is in the log store by then; the next report has it.
        with suppress(FileNotFoundError, LorienError):
            yield from _session(folder, report)[1]


def _token(folder: Path) -> int:
    return int(folder.name.partition(".")[2])


def targets_of(report: Report) -> list[str]:
    """Keys of all targets that a report tells of, sorted."""
    return sorted({key[1] for key in report.tally.workloads} | {model.target for model in report.models})


def fastest_of(report: Report, key: Key) -> float:
    """Lowest latency known of a workload in seconds; infinite when nothing ran."""
    schedule = report.schedules.get(key)
    return min(report.tally.workloads[key].best_s, schedule.latency_s if schedule else math.inf)


def low_peaks(report: Report) -> list[str]:
    """What is to be said of peaks that a workload exceeds."""
    fastest: dict[str, float] = {}
    for key, own in report.tally.workloads.items():
        if own.flop and own.target in report.peaks:
            fastest[own.target] = max(fastest.get(own.target, 0.0), own.flop / fastest_of(report, key))
    return [
        f"{target}: a workload reaches {rate / 1e9:.0f} GFLOPS, the peak is said to be "
        f"{report.peaks[target].flop_per_s / 1e9:.0f}: shares of it are too high. "
        "Fix: --peak measure on an idle machine, or --peak TARGET=GFLOPS"
        for target, rate in sorted(fastest.items())
        if rate > report.peaks[target].flop_per_s
    ]
