"""What ``lorien doctor`` finds, on this machine and on broken ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from lorien.doctor import Finding, Status, extras


def found_of(*requirements: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in extras(requirements, ["some"])}


def test_the_installed_packages_are_those_wanted() -> None:
    found = found_of("pytest>=8", 'rich>=13; extra == "some"')
    assert [finding.status for finding in found.values()] == [Status.OK, Status.OK]
    assert "rich" in found["packages of lorien[some]"].found
    assert "rich" not in found["packages"].found


def test_a_package_that_is_missing_is_told_with_the_command_that_installs_it() -> None:
    found = found_of('no-such-package>=1; extra == "some"')
    assert found["packages of lorien[some]"] == Finding(
        "packages of lorien[some]", Status.WARNING, "missing: no-such-package", "pip install 'lorien[some]'"
    )


def test_without_a_package_of_the_base_nothing_works() -> None:
    assert found_of("no-such-package")["packages"].status is Status.FAILED


def test_another_version_than_wanted_fails() -> None:
    found = found_of('pytest<2; extra == "some"')["packages of lorien[some]"]
    assert found.status is Status.FAILED
    assert found.found.startswith("other versions than needed: pytest ")


def test_requirements_for_other_systems_and_on_lorien_itself_are_left_out() -> None:
    assert not found_of('no-such-package; sys_platform == "plan9"', 'lorien[other]; extra == "some"')


def doctor(*options: str | Path) -> tuple[int, dict[str, dict[str, str]]]:
    command = [Path(sys.executable).parent / "lorien", "doctor", "--json", *options]
    done = subprocess.run(command, capture_output=True, check=False)
    answer = orjson.loads(done.stdout)
    assert answer["healthy"] == (done.returncode == 0)
    return done.returncode, {finding["check"].partition(" ")[0]: finding for finding in answer["findings"]}


def test_on_this_machine_candidates_build_and_run(tmp_path: Path) -> None:
    code, found = doctor("--logs", tmp_path / "logs", "--models", tmp_path / "models")
    assert code == 0, found
    assert " us" in found["measuring"]["found"]
    assert found["log"]["found"] == "0 logs; writable"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "check", "fix"),
    [
        (["--logs", "gopher://host"], "log", ""),
        (["--db", "sqlite:///no/such.db"], "database", ""),
        (["--models", "s3://bucket?endpoint_url=http://127.0.0.1:9"], "model", "endpoint can be reached"),
    ],
    ids=["scheme", "database", "endpoint"],
)
def test_a_store_that_cannot_be_used_fails(
    options: list[str], check: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    code, found = doctor(*options)
    assert code == 1
    assert found[check]["status"] == "failed"
    assert fix in found[check]["fix"]
