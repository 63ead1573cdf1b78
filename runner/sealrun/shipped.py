"""Finds the data that ships with sealrun: ``images/`` and ``policies/``.

Rule: a wheel carries both under ``sealrun/_shipped``; a checkout has them at its top.
"""

from __future__ import annotations

from pathlib import Path


def shipped(*parts: str) -> Path:
    """Return the path of a shipped file or directory, e.g. ``shipped("policies", "strict.toml")``.

    Returns:
        An absolute path; it exists in every complete installation.
    """
    packed = Path(__file__).resolve().parent / "_shipped"
    root = packed if packed.is_dir() else Path(__file__).resolve().parents[2]
    return root.joinpath(*parts)
