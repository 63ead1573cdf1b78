"""Asks a human at the terminal for what no program may decide.

Rules that this module keeps:

- The question goes to the controlling terminal (tty(4)), past any redirection, and so does the
  answer: a code that is shown there and nowhere else.
- Without a controlling terminal the answer is no, and nothing tells a program how to get one.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from sealrun.cli import console
from sealrun.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable


def confirm(lines: Iterable[str], verb: str) -> str:
    """Show what is asked, wait for the code; return the terminal's name.

    Args:
        lines: what is to be decided.
        verb: what the code does, e.g. ``approve``.

    Raises:
        Refused: there is no controlling terminal, or the code was not typed.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(
            "this needs a person at a terminal",
            hint="The owner of this loop decides; there is nothing to do from a program.",
        ) from error
    code = f"{secrets.randbelow(10**6):06d}"
    shown = (*lines, f"Type {code} to {verb}, anything else to leave it as it is: ")
    try:
        os.write(terminal, "\n".join(console.printable(line) for line in shown).encode())
        typed = os.read(terminal, 128).decode("utf-8", "replace").strip()
        name = os.ttyname(terminal)
    except OSError as error:
        raise Refused(f"the terminal could not be read: {error.strerror}") from error
    finally:
        os.close(terminal)
    if typed != code:
        raise Refused(f"nothing changed: the code to {verb} was not typed")
    return name
