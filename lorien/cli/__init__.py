"""The command line: the only place that prints, draws progress and reads the environment."""

from __future__ import annotations

import os


def main() -> None:
    """Entry point of ``lorien``."""
    _few_threads()
    from lorien.cli.app import app

    app(prog_name="lorien")


def train_main() -> None:
    """Entry point of ``lorien-train``."""
    _few_threads()
    from lorien.cli.app import train_app

    train_app(prog_name="lorien-train")


def _few_threads() -> None:
    """Nothing here multiplies matrices worth a thread for each core, and all of these spin when numpy starts."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
