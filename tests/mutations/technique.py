"""What a technique is: one way of changing a workspace, and what has to be found of it.

Rules that this module keeps:

- A technique is data: a script that another process runs, and what must be found. How it is run is
  in ``scene.py``, how each finding is read in ``detectors.py``.
- Every technique says who must be named, or in words why nobody can be.
- One module a family holds the techniques; ``corpus.py`` lists the families.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from enum import StrEnum


class By(StrEnum):
    """What can find a technique; each member is a detector of the product."""

    CONTENT = "every byte compared"
    EVENT = "event"
    REWRITE = "event of a write"
    SWEEP = "identities compared"
    MOUNT = "mounts"
    ROOT = "the root's identity"
    FLAG = "index flags"
    OBJECT = "objects hashed again"
    REPLACED = "replace refs"
    HEAD = "HEAD"
    REFS = "git: refs"
    INDEX = "git: index"
    CONFIGURATION = "git: configuration"
    HOOKS = "git: hooks"
    INFO = "git: info"
    REPLACE = "git: replace"
    IMPORTABLE = "files that could be imported"


class Phase(StrEnum):
    """When a technique strikes."""

    BETWEEN = "between runs"
    ARMED = "armed, before the first comparison"
    DURING = "during the run"


@dataclass(frozen=True)
class Unnamed:
    """Nobody is named for certain, and why that is right."""

    why: str


#: An event is raised, but what it tells of needs no name: no mutation is left on record.
NO_MUTATION = Unnamed("the committed bytes are back before anybody looks")
#: The change makes no event, so that nobody can be named.
NO_EVENT = Unnamed("no event tells of it")


@dataclass(frozen=True)
class Technique:
    """One way of changing a workspace.

    Attributes:
        name: unique.
        act: bash script, run in the workspace by another process. ``$OUT`` is a directory outside,
            on the same file system; ``$BIN`` has the Python that runs the tests, and formatters;
            ``$JOURNAL`` is a pattern of the file in which what is found goes on record.
        writer: program that must be named, or why none can be.
        found: every detector that must find it.
        path: of the tracked file that changes, or that the finding is about.
        setup: script that runs before the commit is compared for the first time.
        cleanup: script that runs when everything has been looked at.
        parent: program that must stand among those that started the writer.
        needs: ``engine`` or ``npm``; both make a marker of the test.
        phase: when it strikes.
        shared: another program opens the file for writing right after the writer, and could have
            written by a mapping: where the guard looks after both, a name in part is all there is.
        final: the changed bytes stand on disk at the end, and must be kept as evidence.
    """

    name: str
    act: str
    writer: str | Unnamed
    found: tuple[By, ...] = (By.CONTENT, By.EVENT)
    path: bytes = b"train.py"
    setup: str = ""
    cleanup: str = ""
    parent: str = ""
    needs: str = ""
    phase: Phase = Phase.DURING
    shared: bool = False
    final: bool = True

    @property
    def by_event(self) -> bool:
        """Whether an event has to tell of it."""
        return By.EVENT in self.found or By.REWRITE in self.found


def python(source: str, *arguments: str) -> str:
    """Return a command that runs Python source in a process of its own."""
    words = (sys.executable, "-Ic", source, *arguments)
    return " ".join(map(shlex.quote, words))


#: Waits until something has gone on record, and no longer than ten seconds.
RECORDED = (
    "for turn in {1..1000}; do\n"
    '  for journal in $JOURNAL; do [ -s "$journal" ] && break 2; done\n'
    "  sleep 0.01\n"
    "done\n"
)
#: The same, in Python.
RECORDED_PYTHON = """
import glob, os, time
for turn in range(1000):
    if any(map(os.path.getsize, glob.glob(os.environ['JOURNAL']))):
        break
    time.sleep(0.01)
"""

#: Seconds after which a process of ``waiting`` ends itself, should nobody end it.
LONGEST = 300


def waiting(source: str, *, ready: str = "") -> str:
    """Return a set-up that starts Python source in the background.

    The source runs ``ready`` first, tells that it has, then waits for ``strike``.
    """
    whole = (
        f"import os, signal\nsignal.alarm({LONGEST})\n{ready}\nopen(os.environ['OUT'] + '/ready', 'w').close()\n"
        f"open(os.environ['OUT'] + '/go').read()\n{source}\n"
        "open(os.environ['OUT'] + '/done', 'w').close()\n"
        "open(os.environ['OUT'] + '/end').read()\n"
    )
    return (
        'mkfifo "$OUT/go" "$OUT/end"\n'
        f"{python(whole)} </dev/null >/dev/null 2>&1 &\n"
        'while [ ! -e "$OUT/ready" ]; do sleep 0.01; done\n'
    )


#: Lets the process of ``waiting`` go on, and waits until it has struck.
STRIKE = 'echo > "$OUT/go"\nwhile [ ! -e "$OUT/done" ]; do sleep 0.01; done'
#: Ends the process of ``waiting``.
RELEASE = 'echo > "$OUT/end"'
