"""What a path of ours is called by the engine.

Rules that this module keeps:

- No IO, and no guess: with a declared mapping only declared directories have a name over there.
- The longest declared directory wins, so that a mount within a mount can be declared too.
- A mapping is a claim; ``probe`` checks it before it is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sealrun.errors import EngineUnavailable, UsageError

#: The variable that declares a mapping: ``/inside:/outside``, several separated by commas.
VARIABLE = "SEALRUN_PATH_MAP"


@dataclass(frozen=True)
class PathMapping:
    """A translation of our paths to the engine's.

    Attributes:
        rules: pairs of our directory and the engine's name of it; none means that both are equal.
    """

    rules: tuple[tuple[PurePosixPath, PurePosixPath], ...] = ()

    @classmethod
    def parse(cls, text: str) -> PathMapping:
        """Read ``/inside:/outside[,/inside:/outside…]``; an empty text declares nothing.

        Raises:
            UsageError: a part is not two absolute paths, or a directory is declared twice.
        """
        rules: list[tuple[PurePosixPath, PurePosixPath]] = []
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            inside, colon, outside = part.partition(":")
            if not colon or not inside.startswith("/") or not outside.startswith("/"):
                raise UsageError(
                    f"{VARIABLE}: {part!r} is not of the form /inside:/outside",
                    hint="Both are absolute paths; several pairs are separated by commas.",
                )
            rule = (PurePosixPath(os.path.normpath(inside)), PurePosixPath(outside))
            if any(rule[0] == other for other, _ in rules):
                raise UsageError(f"{VARIABLE}: {inside} is declared twice")
            rules.append(rule)
        return cls(tuple(sorted(rules, key=lambda rule: -len(rule[0].parts))))

    def translate(self, path: Path) -> str:
        """Return the engine's name of a path.

        Args:
            path: a path as we see it; made absolute, links not followed.

        Raises:
            EngineUnavailable: a mapping is declared and does not cover the path.
        """
        ours = PurePosixPath(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
        if not self.rules:
            return str(ours)
        for inside, outside in self.rules:
            if ours.is_relative_to(inside):
                return str(outside / ours.relative_to(inside))
        declared = ", ".join(str(inside) for inside, _ in self.rules)
        raise EngineUnavailable(
            f"the engine has no name for {ours}: {VARIABLE} covers {declared} only",
            hint=f"Mount the directory from the engine's host, and add its pair to {VARIABLE}.",
        )

    def __str__(self) -> str:
        return ",".join(f"{inside}:{outside}" for inside, outside in self.rules)
