"""The options of ``lorien.testing``, for pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("lorien.testing.log_suite", "lorien.testing.live_suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest."""
    group = parser.getgroup("lorien", "the contract of a dialect (--pyargs lorien.testing)")
    group.addoption("--dialect", help="Dialect to test, by the name of its entry point.")
    group.addoption("--dialect-log", type=Path, help="A log of it, of ten records or more.")
    group.addoption("--dialect-model", help="Of a live dialect: what its extract takes.")
