"""What the networks of several model files are called: by the file's name, with its folders where names collide."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

JOINS = "+"
"""Stands between the networks of a workload in feature tables, so it is in no name."""


def network_names(models: Sequence[Path]) -> list[str]:
    """The name of each model's network, in order.

    A file's name without its suffix; files of one name get as many of their folders as tell them apart (``a/model``,
    ``b/model``), those of one folder their suffix (``a/model.onnx``, ``a/model.pt2``). The same file has one name.
    Names hold no ``+`` and are valid Unicode; log stores write ``/`` as ``-`` in the names of their folders.
    """
    # Not resolved: stores of models link files to names that are hashes.
    paths = [Path(os.path.abspath(model)) for model in models]
    distinct = list(dict.fromkeys(paths))
    names = {}
    for path in distinct:
        stem = plain_name(path.stem)
        twins = [other for other in distinct if other != path and plain_name(other.stem) == stem]
        names[path] = _told_apart(path, twins) if twins else stem
    return [names[path] for path in paths]


def plain_name(name: str) -> str:
    """A name that can be joined with others and written as JSON."""
    return name.encode("utf-8", "replace").decode().replace(JOINS, "-")


def _told_apart(path: Path, twins: Sequence[Path]) -> str:
    def tail(of: Path, folders: int, suffix: bool) -> str:
        parts = [*of.parent.parts[1:][-folders:], of.name if suffix else of.stem]
        return plain_name("/".join(parts))

    for suffix in (False, True):
        for folders in range(1, len(path.parts)):
            name = tail(path, folders, suffix)
            if all(tail(twin, folders, suffix) != name for twin in twins):
                return name
    # Their names differ in what no name may have.
    return f"{plain_name(path.stem)}-{1 + sum(str(twin) < str(path) for twin in twins)}"
