"""Small JSON files that processes of one user leave each other in directories of their own.

Rules that this module keeps:

- A file is complete or not there, whoever is killed while it is written; its owner alone reads it.
- What is read is bounded and ours, or nothing: a link, a FIFO or a device in its place holds nobody
  up, and neither does what is no JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from typing import TYPE_CHECKING, Any

from sealrun.regular import beginning

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Bytes of such a file at most.
LARGEST = 1 << 20


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Put a file in the place of the one that stands there, if any.

    A draft that a killed process left begins with a dot and does not end as its file does.

    Args:
        file: its path; the directory exists.
        content: what it will hold.

    Raises:
        OSError: it cannot be written; what stood there still does.
    """
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with open(os.open(draft, flags, 0o600), "w", encoding="ascii") as stream:  # noqa: PTH123 - a descriptor
            json.dump(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def read(file: Path) -> Any:  # noqa: ANN401 - JSON is any of these
    """Return what a file holds; None where it is not there, too large, or none of ours."""
    found = beginning(file, LARGEST + 1)
    if found is None or len(found) > LARGEST:
        return None
    try:
        return json.loads(found)
    except (ValueError, RecursionError):
        return None
