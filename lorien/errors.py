"""One tree of errors. Every message says what to do next."""

from __future__ import annotations

from collections.abc import Sequence


class LorienError(Exception):
    """Base of everything Lorien raises on purpose; the command line prints it without a traceback."""

    def __reduce__(self) -> tuple[object, ...]:
        return again, (type(self), str(self))


class BadInput(LorienError, ValueError):
    """What was given cannot be used: a file, a value, a combination of options."""


class UnknownDialect(LorienError, LookupError):
    """No dialect of that name is built in or installed."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"no dialect {name!r}; known: {', '.join(known)}. Fix: --dialect with one of these")


class UnsupportedOperation(LorienError, NotImplementedError):
    """The dialect or back end cannot do this; the message names one that can."""


class UnreadableLog(BadInput):
    """A path holds no log of the dialect it was given as."""


class LogGone(BadInput):
    """A log of a store is no longer there: it was removed, or replaced by a longer one."""


class UnknownTarget(LorienError, LookupError):
    """No performance model has been trained for this target."""

    def __init__(self, target: str, known: Sequence[str]) -> None:
        super().__init__(
            f"no model for {target!r}; trained: {', '.join(known) or 'none'}. "
            f"Fix: lorien-train FEATURES -o MODELS --target {target!r}"
        )


class SchemaMismatch(LorienError, ValueError):
    """A table, a model or a database was written under another schema than the reader's."""


class ChecksumMismatch(LorienError, ValueError):
    """A stored file is not the one that was published. Nothing of it has been loaded."""


class DatabaseUnavailable(LorienError, OSError):
    """The database cannot be read or written now. What was put before stays; the message says what of this was done."""


class StoreUnavailable(LorienError, OSError):
    """A log store cannot be read or written now. Nothing half-written is taken for whole."""


class DeviceUnavailable(LorienError, OSError):
    """No device to measure on can be had now. What was measured before is kept."""


class LeaseLost(LorienError):
    """A job is no longer this worker's: its lease lapsed and another took it, or it was cancelled. Nothing changed."""

    def __init__(self, run: str, number: int, status: str, worker: str) -> None:
        super().__init__(
            f"job {number} of run {run!r} is no longer this worker's: it is {status}, last held by "
            f"{worker or 'nobody'}. Fix: nothing is lost; a slow or suspended worker wants a longer --lease"
        )


class MissingExtra(LorienError, ImportError):
    """An optional part is not installed; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Fix: pip install 'lorien[{extra}]'")


class VersionClash(LorienError, ImportError):
    """Two installed packages do not work together; the message holds the versions that do."""


class NotAllowed(LorienError, PermissionError):
    """The service does not do this for the one who asks: no token, a wrong one, or its operator has not allowed it."""


class ServiceUnavailable(LorienError, OSError):
    """The service cannot answer now: it is not there, has too much to do, or took too long."""


def error_named(name: str, message: str) -> LorienError | None:
    """An error that another process, or a service, told by the name of its class; None when there is no such class."""
    kind = globals().get(name)
    return again(kind, message) if isinstance(kind, type) and issubclass(kind, LorienError) else None


def again(kind: type[LorienError], message: str) -> LorienError:
    """An error that was raised in another process, from its class and its message."""
    return kind.__new__(kind, message)
