"""A directory that appears is watched before it is listed: nothing that is made in it goes unheard.

The writer strikes right after the guard has listed a directory, which is when it misses what is made
there unless it watches already. What is heard of is told at once; a comparison finds it at the end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from _guard import eventually, site
from _struck import SCRATCH, struck, unwatched

if TYPE_CHECKING:
    from pathlib import Path

    from _struck import Struck

__all__ = ["site", "struck", "unwatched"]


def _heard(struck: Struck, path: Path) -> bool:
    return bytes(path) in {mutation.path for mutation in struck.heard}


def test_a_file_made_while_its_directory_arrives(struck: Struck) -> None:
    """A file that came after the list and before anything else is told of."""
    package = struck.root / "package"

    def strike() -> None:
        (package / "mod.py").write_text("x = 1\n")

    struck.after_list[str(package)] = strike
    package.mkdir()
    eventually(lambda: _heard(struck, package / "mod.py"))
    assert not struck.after_list


def test_a_directory_made_while_its_parent_arrives(struck: Struck) -> None:
    """So is one in a directory that came then."""
    package = struck.root / "package"
    struck.after_list[str(package)] = (package / "deep").mkdir
    package.mkdir()
    eventually(lambda: not struck.after_list)
    (package / "deep" / "mod.py").write_text("x = 1\n")
    eventually(lambda: _heard(struck, package / "deep" / "mod.py"))


def test_a_directory_made_while_the_watch_begins(unwatched: Struck) -> None:
    """What came after the first list and before its parent had a watch is watched as well."""
    scratch = unwatched.root / SCRATCH
    late = scratch / "late"
    unwatched.after_list[str(scratch)] = late.mkdir
    unwatched.watch()
    assert late.is_dir()
    (late / "mod.py").write_text("x = 1\n")
    eventually(lambda: _heard(unwatched, late / "mod.py"))


def test_a_replacement_made_while_its_directory_arrives(struck: Struck) -> None:
    """Git's own directories are followed in the same way."""
    replace = struck.root / ".git" / "refs" / "replace"
    struck.after_list[str(replace)] = (replace / "deep").mkdir
    replace.mkdir()
    eventually(lambda: not struck.after_list)
    time.sleep(0.3)  # its parent's arrival is a reason to look, too
    (replace / "deep" / "er").write_text("x")
    changed = struck.tree.git_changes
    eventually(lambda: "refs/replace/deep/er" in {change.name for change in changed})
