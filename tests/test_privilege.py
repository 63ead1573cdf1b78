"""A guard of another user, with and without the capabilities that naming writers needs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _cli import SEALRUN
from _user import REACH, USER, as_user

if TYPE_CHECKING:
    from collections.abc import Iterator

CAPABILITIES = "+sys_admin,+net_admin,+sys_ptrace,+sys_nice"


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Path]:
    """A repository and a home of a user who is not root."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(directory.stat().st_mode | 0o055)
    (tmp_path / "home").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    (work / "train.py").write_text("SCALAR_LR = 0.5\n")
    subprocess.run(["chown", "-R", f"{USER}:{USER}", tmp_path], check=True)
    _as_user(tmp_path, "git init -q . && git add . && git commit -qm baseline")
    yield tmp_path
    _as_user(tmp_path, f"{SEALRUN} guard stop")


def _as_user(root: Path, script: str, capabilities: str = REACH) -> str:
    return as_user(root, script, state=root / "home", capabilities=capabilities)


#: Arms a run, lets another process write, and prints how its writer was found.
STRIKE = """
import pathlib, subprocess, sys
from sealrun.guard import find, write_manifest
from sealrun.state import Places
from sealrun.tree import blob_id
from _guard import Listed, eventually

here = pathlib.Path.cwd()
content = (here / "train.py").read_bytes()
manifest = pathlib.Path.home() / "manifest"
entry = Listed(b"train.py", 0o100644, blob_id(content, "sha1"), len(content))
write_manifest(manifest, "sha1", [entry])
with find(here, Places.of_user()) as client:
    client.arm("r", manifest, pathlib.Path.home() / "evidence")
    write = "sleep 0.1; echo 'SCALAR_LR = 0.3' 1<> train.py; sleep 0.1; :"
    subprocess.run(["bash", "-ec", write], check=True)
    eventually(lambda: bool(client.drain("r").mutations))
    (mutation,) = client.disarm("r").mutations
writer = mutation.writer
print(writer.how, writer.process and pathlib.Path(writer.process.exe).name)
"""


def _strike(home: Path) -> list[str]:
    """Let a process of that user write; return how it was found and its program."""
    tests = Path(__file__).parent
    program = f"import sys; sys.path.append({str(tests)!r})\n{STRIKE}"
    return _as_user(home, f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}").split()


def test_a_guard_with_four_capabilities_names_writers(theirs: Path) -> None:
    """What the guide on privilege gives to a guard of an ordinary user is enough."""
    _as_user(theirs, f"{SEALRUN} guard start", f"{CAPABILITIES},{REACH}")
    how, program = _strike(theirs)
    assert how in {"live", "cached"}
    assert program == "bash"


def test_without_them_the_change_is_found_and_nobody_is_named(theirs: Path) -> None:
    """An ordinary user's guard keeps the evidence and says that writers are unavailable."""
    _as_user(theirs, f"{SEALRUN} guard start")
    assert _strike(theirs) == ["unavailable", "None"]
