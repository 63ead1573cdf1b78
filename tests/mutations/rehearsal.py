"""Runs techniques, each at most once in a session of tests, and adds up who was named."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mutations import watched
from mutations.detectors import Named, missing, named
from mutations.scene import Scene, guard_process
from mutations.technique import By

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from mutations.scene import GuardedBy
    from mutations.technique import Technique

#: Share of techniques with a stated writer that have to be named for certain.
SHARE = 0.95
#: How often all of them are run again at most where fewer were: a machine that stands still for a
#: moment costs several in a row, and of a few that is too many.
AGAIN = 3


@dataclass(frozen=True)
class Share:
    """How many of the stated writers were named, and who was not.

    Attributes:
        named: for certain, or in part where a technique says that more cannot be known.
        stated: all of them.
        words: for a person who reads a failure.
    """

    named: int
    stated: int
    words: str

    @property
    def enough(self) -> bool:
        """Whether ``SHARE`` was reached; of fewer than twenty, one more or less says nothing."""
        return self.stated - self.named <= max(1, int(self.stated * (1 - SHARE)))


@dataclass(frozen=True)
class Result:
    """What came of one technique.

    Attributes:
        missing: what should have been found and was not.
        named: None where the technique states no writer.
    """

    technique: Technique
    missing: tuple[str, ...]
    named: Named | None

    @property
    def is_named(self) -> bool:
        """Whether the name counts."""
        if self.named is None:
            return False
        in_part = self.technique.shared and self.named.right and self.named.how == "partial"
        return self.named.certain or in_part

    @property
    def misnamed(self) -> str | None:
        """The wrong name that was given for certain, if one was."""
        wrong = self.named is not None and self.named.how in ("live", "cached")
        return self.named.text if self.named and wrong and not self.named.right else None


def rehearse(technique: Technique, guarded_by: GuardedBy = guard_process) -> Result:
    """Run one technique in a workspace of its own, where a run looks or a watch."""
    if By.IMPORTABLE in technique.found:
        return rehearse_watched(technique)
    with _directory() as directory, Scene(directory, guarded_by, _image(technique)) as scene:
        seen = scene.observe(technique)
    return Result(technique, missing(technique, seen), named(technique, seen))


def rehearse_watched(technique: Technique, command: Sequence[str] = watched.COMMAND) -> Result:
    """Run one technique in a workspace of its own under the stand-alone watch."""
    with _directory() as directory, Scene(directory, image=_image(technique)) as scene:
        said = watched.watch(scene, technique, directory / "home", command)
    return Result(technique, watched.missing(technique, said), watched.named(technique, said))


@contextmanager
def _directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)  # other users have to come through
        yield Path(name)


def _image(technique: Technique) -> str:
    if technique.needs != "engine":
        return ""
    import _sandbox

    return _sandbox.image(_sandbox.client())


@dataclass
class Rehearsals:
    """Results by technique."""

    guarded_by: GuardedBy = guard_process
    _results: dict[str, Result] = field(default_factory=dict[str, Result])

    def of(self, technique: Technique) -> Result:
        """Return a technique's result; it runs at the first call."""
        if technique.name not in self._results:
            self._results[technique.name] = rehearse(technique, self.guarded_by)
        return self._results[technique.name]

    def share(self, techniques: Sequence[Technique], *, again: int = AGAIN) -> Share:
        """Add up whose writers were named, of all that was run."""
        results = [self.of(one) for one in techniques]
        share = _share(results)
        for _ in range(again):
            if share.enough:
                break
            results += [rehearse(one, self.guarded_by) for one in techniques]
            share = _share(results)
        return share


def _share(results: Sequence[Result]) -> Share:
    stated = [one for one in results if one.named is not None]
    rest = [one for one in stated if not one.is_named]
    partial = sum(one.named is not None and one.named.how == "partial" for one in stated)
    words = [f"{len(stated) - len(rest)} of {len(stated)} named, {partial} in part"]
    words += [f"{one.technique.name}: {one.named and one.named.text}" for one in rest]
    return Share(len(stated) - len(rest), len(stated), "\n".join(words))
