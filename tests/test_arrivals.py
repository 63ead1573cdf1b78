"""A directory that appears is watched before it is listed: nothing that is made in it goes unheard.

The writer strikes right after the guard has listed a directory, which is when it misses what is made
there unless it watches already. What is heard of is told at once; a comparison finds it at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from _guard import eventually, site
from _struck import SCRATCH, struck, unwatched
from sealrun.guard.attribution import Attribution
from sealrun.guard.directories import UNHEARD

if TYPE_CHECKING:
    from pathlib import Path

    from _struck import Struck
    from sealrun.guard import Writer

__all__ = ["site", "struck", "unwatched"]


BACK = "mv pkg/x pkg/deep; echo 'WIDTH = 32' > pkg/deep/model.py; :"


def _heard(struck: Struck, path: Path) -> bool:
    return bytes(path) in {mutation.path for mutation in struck.heard}


def _program(writer: Writer) -> str | None:
    exe = writer.process.exe if writer.process is not None else None
    return exe.rpartition("/")[2] if exe else None


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


def test_a_writer_below_a_directory_that_came_back_unheard(struck: Struck) -> None:
    """Whoever writes there is named, not who moved the directory, of which the guard hears later."""
    where = struck.root / "pkg"

    def strike() -> None:
        subprocess.run(["bash", "-c", BACK], cwd=struck.root, check=True)

    struck.before_look[b"pkg/deep/model.py"] = strike
    (where / "deep").rename(where / "x")
    eventually(lambda: bool(struck.heard))
    (found,) = (one for one in struck.report().mutations if one.path == b"pkg/deep/model.py")
    assert found.kind == "modified"
    assert _program(found.writer) == "bash"


def test_a_directory_that_came_back_unheard_stays_marked(tmp_path: Path) -> None:
    """What is done with directories that left leaves one alone that stands there again."""
    root = os.fsencode(tmp_path)
    (tmp_path / "deep").mkdir()
    attribution = Attribution()
    attribution.start()
    try:
        attribution.cover(root)
        attribution.cover(root + b"/deep")
        since = attribution.settle()
        (tmp_path / "deep").rename(tmp_path / "x")
        attribution.leave(root + b"/deep")
        (tmp_path / "x").rename(tmp_path / "deep")
        attribution.reap()
        subprocess.run(["bash", "-c", "echo > deep/model.py; :"], cwd=tmp_path, check=True)
        attribution.settle()
        writer, _ = attribution.name(root + b"/deep/model.py", "modified", since)
    finally:
        attribution.stop()
    assert _program(writer) == "bash"


@pytest.mark.parametrize(("before", "why"), [("../other", UNHEARD), ("other", None)])
def test_who_moves_a_directory_here(struck: Struck, before: str, why: str | None) -> None:
    """They surely made what is in it only if everybody who was in it has been seen."""
    other = struck.root / before
    other.mkdir()
    (other / "model.py").write_text("WIDTH = 32\n")
    struck.report()
    script = (
        "import os, shutil, time; time.sleep(0.1); shutil.rmtree('pkg/deep'); "
        f"os.rename({before!r}, 'pkg/deep'); time.sleep(0.1)"
    )
    subprocess.run([sys.executable, "-Ic", script], cwd=struck.root, check=True)
    (found,) = (one for one in struck.report().mutations if one.path == b"pkg/deep/model.py")
    assert (found.kind, found.writer.why) == ("modified", why)
    assert (_program(found.writer) or "").startswith("python")


def test_a_directory_that_is_swapped_before_its_writer_is_named(
    struck: Struck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who brings another one to the place after the look did not write what was found there."""
    other = struck.root / "pkg" / "other"
    other.mkdir()
    (other / "model.py").write_text("WIDTH = 1\n")
    struck.report()
    swaps = ["mv pkg/deep pkg/old; mv pkg/other pkg/deep; :"]
    real = Attribution.settle

    def settle(self: Attribution) -> int:
        if swaps and struck.guard.busy:
            subprocess.run(["bash", "-c", swaps.pop()], cwd=struck.root, check=True)
        return real(self)

    monkeypatch.setattr(Attribution, "settle", settle)
    script = "sleep 0.1; echo 'WIDTH = 32' > pkg/deep/model.py; sleep 0.1; :"
    subprocess.run(["bash", "-c", script], cwd=struck.root, check=True)
    eventually(lambda: not swaps and bool(struck.heard))
    found = next(one for one in struck.report().mutations if one.path == b"pkg/deep/model.py")
    assert found.evidence is not None
    assert found.evidence.size == len("WIDTH = 32\n")
    assert _program(found.writer) != "mv" or found.writer.how == "partial"
    seen = {_program(one) for one in (found.writer, *found.candidates)}
    assert seen >= {"bash", "mv"}
