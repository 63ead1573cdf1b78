"""Sphinx configuration. ``make docs`` builds with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

import _generate

from sealrun import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "sealrun"
author = "The sealrun developers"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sealrun {release}"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
smartquotes = False  # "--" is an option here
nitpicky = True


def _fill(app: Sphinx, page: str, source: list[str]) -> None:  # noqa: ARG001 - Sphinx's signature
    source[0] = _generate.fill(source[0])


def setup(app: Sphinx) -> None:
    """Fill the generated parts of pages as Sphinx reads them."""
    app.connect("source-read", _fill)
