"""What a service is started with."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorien.delivery import SEARCH_S
from lorien.target import Target


@dataclass(frozen=True)
class ServeConfig:
    """How a service answers.

    Parameters
    ----------
    models, database : str, optional
        URLs of the model store and of the schedule database.
    token : str, optional
        What every request but those for health and documentation must carry; None lets everybody on this machine in.
    device : Target, optional
        This machine, when schedules may be built and run on it for those who ask; None verifies nothing.
    search_s : float
        Seconds of search for a schedule that the database does not have.
    max_body_bytes : int
        The largest request.
    timeout_s : float
        Seconds an answer may take, those of reading the request included.
    concurrency : int
        Requests answered at a time; one more is told to come back.
    reload_s : float
        Seconds between two looks for newer models.
    """

    models: str | None = None
    database: str | None = None
    token: str | None = field(default=None, repr=False)
    device: Target | None = None
    search_s: float = SEARCH_S
    max_body_bytes: int = 16 << 20
    timeout_s: float = 120.0
    concurrency: int = 32
    reload_s: float = 10.0
