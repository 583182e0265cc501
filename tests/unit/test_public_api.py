"""What ``import lorien`` offers, and that it loads nothing heavy until used."""

from __future__ import annotations

import doctest
import subprocess
import sys

import lorien


def test_every_export_resolves() -> None:
    assert set(lorien.__all__) == set(lorien._EXPORTS)
    for name in lorien.__all__:
        assert getattr(lorien, name) is not None


def test_deliver_is_a_function_even_after_its_module_is_imported() -> None:
    import lorien.delivery

    assert lorien.deliver is lorien.delivery.deliver


def test_records_do_not_load_numpy() -> None:
    program = "import sys, lorien; lorien.Workload, lorien.Target; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_examples_of_the_public_calls_are_true() -> None:
    results = doctest.testmod(lorien)
    assert results.attempted > 10
    assert not results.failed
