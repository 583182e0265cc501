"""What notebooks begin with: the logs that ship as feature tables, and a model of them. Made once, then reused."""

from __future__ import annotations

from pathlib import Path

import lorien
from lorien.featurize.table import featurize
from lorien.models.data import Tables, group_tables


def sample_features(datasets: str | Path, work: str | Path) -> Path:
    """Feature tables of the MetaSchedule logs below a folder; only what is new is read.

    Parameters
    ----------
    datasets : str or Path
        Folder of logs.
    work : str or Path
        Folder for what is made of them.

    Raises
    ------
    UnreadableLog
        There are no such logs.
    """
    logs = lorien.open_logs(f"{work}/logs")
    lorien.ingest([Path(datasets)], logs, dialect=lorien.open_dialect("metaschedule"))
    features = Path(work) / "features"
    featurize(logs, features)
    return features


def sample_tables(features: Path) -> Tables:
    """The tables of the one target that the sample holds."""
    (group,) = group_tables(features)
    return group


def sample_models(features: Path, work: str | Path, holdout_network: str, time_limit_s: float) -> Path:
    """A model store whose model has not seen a network; trained only if it is not there yet."""
    models = Path(work) / f"models-without-{holdout_network}"
    lorien.train(features, models, holdout_network=holdout_network, time_limit_s=time_limit_s, reuse=True)
    return models
