"""What ``lorien rank`` takes for a number of candidates and for a time."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from lorien.cli.workloads import parse_seconds, parse_top_k


def test_a_number_or_auto():
    assert [parse_top_k(text) for text in ("1", "32", "auto")] == [1, 32, None]
    for text in ("0", "-1", "1.5", "all", ""):
        with pytest.raises(typer.BadParameter, match="auto"):
            parse_top_k(text)


def test_a_time_with_or_without_its_unit():
    assert [parse_seconds(text) for text in ("10", "10s", "1.5m", "500ms")] == [10.0, 10.0, 90.0, 0.5]
    for text in ("0", "0s", "-1s", "10 s", "1h", "soon", ""):
        with pytest.raises(typer.BadParameter, match="10s or 2m"):
            parse_seconds(text)


def test_the_two_ways_to_limit_a_search_exclude_each_other(tmp_path):
    from lorien.cli.app import app

    found = CliRunner().invoke(app, ["rank", str(tmp_path / "w.jsonl"), "--budget", "5s", "--search-s", "3"])
    assert found.exit_code == 2
    assert "one of the two" in " ".join(found.output.replace("│", " ").split())
