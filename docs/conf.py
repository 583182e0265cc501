"""How Sphinx builds the documentation: ``make docs``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lorien

project = "Lorien"
author = copyright = "The Lorien developers"
version = release = lorien.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
napoleon_google_docstring = False
autodoc_typehints = "none"  # the NumPy docstrings name the types
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

html_theme = "furo"
html_title = "Lorien"
html_copy_source = False
exclude_patterns = ["_build"]

DOCS = Path(__file__).parent
GENERATED = DOCS / "reference"
PROGRAMS = {"lorien": "app", "lorien-train": "train_app"}
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "datasets/README.md": "datasets.md",
}
"""Pages whose text lies where people look for it in the tree."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#]+)")


def setup(app: Any) -> None:
    """Write the pages that follow from the code, and take in those that lie elsewhere."""
    GENERATED.mkdir(exist_ok=True)
    pages = "".join(_commands(program, name) for program, name in PROGRAMS.items())
    (GENERATED / "commands.md").write_text(f"# Commands\n{pages}", encoding="utf-8")
    calls = "\n".join(_call(name, lorien._EXPORTS[name]) for name in sorted(lorien.__all__))
    (GENERATED / "python.md").write_text(f"# Python\n\n```{{eval-rst}}\n{calls}```\n", encoding="utf-8")
    app.connect("source-read", _take_in)


def _take_in(_: object, page: str, text: list[str]) -> None:
    """Put the text that lies elsewhere before what the page itself holds."""
    for path, to in ELSEWHERE.items():
        if to == f"{page}.md":
            text[0] = _relinked(DOCS.parent / path) + text[0]


def _relinked(source: Path) -> str:
    """A text of the tree, its links written as in a page of docs/."""

    def moved(link: re.Match[str]) -> str:
        path = os.path.relpath(source.parent / link[0], DOCS.parent)
        return ELSEWHERE.get(path) or ELSEWHERE.get(f"{path}/README.md") or os.path.relpath(DOCS.parent / path, DOCS)

    return _LINK.sub(moved, source.read_text(encoding="utf-8"))


def _commands(program: str, app: str) -> str:
    """Help of a program and its commands, a heading level down."""
    command = [sys.executable, "-m", "typer", "--app", app, "lorien.cli.app", "utils", "docs", "--name", program]
    done = subprocess.run([*command, "--title", program], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.replace("\n#", "\n##").replace("# ", "\n## ", 1)


def _call(name: str, module: str) -> str:
    kind = "autoclass" if isinstance(getattr(lorien, name), type) else "autofunction"
    return f".. {kind}:: {module}.{name}\n"
