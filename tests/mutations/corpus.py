"""All families of the corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mutations import (
    editors,
    formatters,
    gits,
    hiding,
    imports,
    mounts,
    people,
    shell,
    syscalls,
    timing,
)

if TYPE_CHECKING:
    from types import ModuleType

    from mutations.technique import Technique

#: Family by the title that the table shows.
FAMILIES: dict[str, ModuleType] = {
    "Editors": editors,
    "Formatters and fixers": formatters,
    "Shell tools": shell,
    "System calls": syscalls,
    "Mounts and roots": mounts,
    "Other users and namespaces": people,
    "Git, used by somebody else": gits,
    "Hidden from git": hiding,
    "Beside the tracked files": imports,
    "Quick, slow, many, undone": timing,
}

BY_FAMILY: dict[str, tuple[Technique, ...]] = {
    title: family.TECHNIQUES for title, family in FAMILIES.items()
}
TECHNIQUES: tuple[Technique, ...] = tuple(
    technique for techniques in BY_FAMILY.values() for technique in techniques
)
