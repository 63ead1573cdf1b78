"""The stand-alone watch over the same techniques: ``sealrun watch --jsonl``, as a loop would start it.

Rules that this module keeps:

- Only what the machine stream says counts; its fields are those that the manual promises.
- The watch is another process, started by its command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Any

from mutations.detectors import Named, programs
from mutations.technique import By, Unnamed
from sealrun.guard.mutations import JOURNAL
from sealrun.guard.processes import Process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mutations.scene import Scene
    from mutations.technique import Technique

#: How the command is called; canaries put something before it.
COMMAND = (sys.executable, "-m", "sealrun")


def watch(
    scene: Scene, technique: Technique, home: Path, command: Sequence[str] = COMMAND
) -> list[dict[str, Any]]:
    """Let a technique strike under a watch; return everything that the watch said."""
    scene.script(technique.setup)
    scene.journal = home / "state" / "watches" / "*" / JOURNAL
    try:
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                [*command, "watch", "--jsonl", os.fspath(scene.root)],
                cwd="/",
                env=os.environ | {"SEALRUN_HOME": os.fspath(home)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                said = [json.loads(process.stdout.readline() or b"null")]
                assert said == [{"event": "ready"}], (said, _words(errors))
                scene.script(technique.act)
            finally:
                process.stdin.close()
            said += [json.loads(line) for line in process.stdout]
            assert said[-1]["event"] == "verdict", (said, _words(errors))
        return said
    finally:
        scene.script(technique.cleanup)


def _words(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode("utf-8", "replace")[-2000:]


def missing(technique: Technique, said: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return what the watch should have found of a technique and did not."""
    lacks: list[str] = []
    if By.IMPORTABLE in technique.found and not _of(technique, said):
        lacks.append(By.IMPORTABLE)
    clean = said[-1]["verdict"] == "clean"
    # What was undone before anybody could look is worth a note; nothing is changed by it.
    if clean and not (By.REWRITE in technique.found and _noted(technique, said)):
        lacks.append("a verdict that is not clean")
    return tuple(lacks)


def named(technique: Technique, said: Sequence[dict[str, Any]]) -> Named | None:
    """Say how the writer was named; None where the technique says that nobody can be."""
    if isinstance(technique.writer, Unnamed):
        return None
    found = [one for one in _of(technique, said) if one["pid"] is not None]
    if not found:
        return Named("unavailable", right=False, text="nobody")
    last = found[-1]
    names = programs(Process(last["pid"], exe=last["exe"], cmdline=tuple(last["cmdline"] or ())))
    return Named(last["how"], technique.writer in names, f"{', '.join(names)} ({last['how']})")


def _noted(technique: Technique, said: Sequence[dict[str, Any]]) -> bool:
    ending = "/" + os.fsdecode(technique.path)
    return any(note["path"].endswith(ending) for note in said[-1]["notes"])


def _of(technique: Technique, said: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    ending = "/" + os.fsdecode(technique.path)
    return [one for one in said if one["event"] == "detection" and one["path"].endswith(ending)]
