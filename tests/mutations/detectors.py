"""How each detector's finding is read, and what a technique's check comes to.

Rules that this module keeps:

- One function a detector, and nothing shared between them: with one detector gone its function
  finds nothing, whatever the others found.
- A name counts only where the product is sure of it (``live`` or ``cached``); ``partial`` counts
  apart, and a wrong name is never excused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from mutations.technique import By, Phase, Unnamed

if TYPE_CHECKING:
    from collections.abc import Callable

    from mutations.scene import Observed
    from mutations.technique import Technique
    from sealrun.guard import Mutation, Writer
    from sealrun.guard.processes import Process

#: What a check reports where the foreign bytes were not kept.
EVIDENCE = "evidence of the bytes that stand there now"
#: How a writer is known for certain.
CERTAIN = ("live", "cached")
_INTERPRETERS = ("python", "perl", "node", "bash", "sh")


def _mutations(seen: Observed, path: bytes, area: str = "tracked") -> list[Mutation]:
    return [m for m in seen.report.mutations if m.area == area and m.path in (path, b"")]


def _content(seen: Observed, path: bytes) -> bool:
    comparison = seen.last if seen.phase is Phase.DURING else seen.first
    return any(difference.path == path for difference in comparison.differences)


def _event(seen: Observed, path: bytes) -> bool:
    return any(mutation.events for mutation in _mutations(seen, path))


def _rewrite(seen: Observed, path: bytes) -> bool:
    noted = any(one.path == path and one.content for one in seen.report.rewrites)
    return noted or _event(seen, path)


def _sweep(seen: Observed, path: bytes) -> bool:
    return any(mutation.final and not mutation.events for mutation in _mutations(seen, path))


def _mount(seen: Observed, _: bytes) -> bool:
    return any(mutation.area == "mount" for mutation in seen.report.mutations)


def _root(seen: Observed, _: bytes) -> bool:
    return any(mutation.area == "root" for mutation in seen.report.mutations)


def _flag(seen: Observed, path: bytes) -> bool:
    comparison = seen.last if seen.phase is Phase.DURING else seen.first
    return any(d.path == path and d.hidden for d in comparison.differences)


def _object(seen: Observed, _: bytes) -> bool:
    return seen.corrupt


def _replaced(seen: Observed, _: bytes) -> bool:
    return bool(seen.replaced)


def _head(seen: Observed, _: bytes) -> bool:
    return seen.report.git is not None and seen.report.git.head_moved


def _git(area: str) -> Callable[[Observed, bytes], bool]:
    def found(seen: Observed, _: bytes) -> bool:
        git = seen.report.git
        return git is not None and any(change.area == area for change in git.changes)

    return found


DETECTORS: dict[By, Callable[[Observed, bytes], bool]] = {
    By.CONTENT: _content,
    By.EVENT: _event,
    By.REWRITE: _rewrite,
    By.SWEEP: _sweep,
    By.MOUNT: _mount,
    By.ROOT: _root,
    By.FLAG: _flag,
    By.OBJECT: _object,
    By.REPLACED: _replaced,
    By.HEAD: _head,
    By.REFS: _git("refs"),
    By.INDEX: _git("index"),
    By.CONFIGURATION: _git("configuration"),
    By.HOOKS: _git("hooks"),
    By.INFO: _git("info"),
    By.REPLACE: _git("replace"),
}


@dataclass(frozen=True)
class Named:
    """How a technique's writer was named.

    Attributes:
        right: the program that the technique states is among the names of the process.
        text: for a person who reads a failure.
    """

    how: str
    right: bool
    text: str

    @property
    def certain(self) -> bool:
        """Whether the name counts."""
        return self.right and self.how in CERTAIN


def missing(technique: Technique, seen: Observed) -> tuple[str, ...]:
    """Return what should have been found of a technique and was not; empty when all is well."""
    lacks = [by for by in technique.found if not DETECTORS[by](seen, technique.path)]
    told: list[str] = [by.value for by in lacks]
    if _wants_evidence(technique, seen) and not _kept(technique, seen):
        told.append(EVIDENCE)
    return tuple(told)


def _wants_evidence(technique: Technique, seen: Observed) -> bool:
    by_guard = By.EVENT in technique.found or By.SWEEP in technique.found
    stands = technique.final and seen.digest not in (None, seen.committed)
    return stands and by_guard


def _kept(technique: Technique, seen: Observed) -> bool:
    return any(
        mutation.evidence is not None
        and mutation.evidence.sha256 == seen.digest
        and mutation.evidence.file is not None
        for mutation in _mutations(seen, technique.path)
    )


def named(technique: Technique, seen: Observed) -> Named | None:
    """Say how the writer was named; None where the technique says that nobody can be."""
    if isinstance(technique.writer, Unnamed):
        return None
    found = [m for m in _mutations(seen, technique.path) if m.events]
    if not found:
        return Named("unavailable", right=False, text="no mutation")
    last = max(found, key=lambda mutation: mutation.last.monotonic)
    return _named(technique.writer, technique.parent, last.writer)


def _named(program: str, parent: str, writer: Writer) -> Named:
    process = writer.process
    if process is None:
        return Named(writer.how, right=False, text=f"nobody: {writer.why}")
    names = programs(process)
    above = [name for one in writer.parents for name in programs(one)]
    right = program in names and (not parent or parent in above)
    text = (
        f"{', '.join(names)} below {', '.join(dict.fromkeys(above))} ({writer.how}; {writer.why})"
    )
    return Named(writer.how, right, text)


def programs(process: Process) -> tuple[str, ...]:
    """Return the names that a process goes by: its program's, and the script's that it runs."""
    arguments = process.cmdline or ()
    names = [PurePath(name).name for name in (process.exe or "", *arguments[:1]) if name]
    # The kernel says so of a program whose file is gone.
    names = [name.removesuffix(" (deleted)").removeprefix("memfd:") for name in names]
    if names and names[0].startswith(_INTERPRETERS):
        names[0] = names[0].rstrip("0123456789.")
        names += _script(arguments[1:])
    return tuple(dict.fromkeys(names))


def _script(arguments: tuple[str, ...]) -> list[str]:
    for number, argument in enumerate(arguments):
        if argument == "-m":
            return list(arguments[number + 1 : number + 2])
        if argument.startswith("-") and argument.endswith("c"):
            return []
        if not argument.startswith("-"):
            return [PurePath(argument).name]
    return []
