"""What comes and goes among a container's mounts is noticed, and named while it stands."""

from __future__ import annotations

import subprocess
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sealrun.sandbox.contents import MountWatch

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def _namespace() -> Generator[subprocess.Popen[str]]:
    """A shell in mounts of its own, that tells when it has done what it was told."""
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as shell:
        _do(shell, "true")
        yield shell
        shell.kill()


def _do(shell: subprocess.Popen[str], command: str) -> None:
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(f"{command}; echo $?\n")
    shell.stdin.flush()
    assert shell.stdout.readline() == "0\n"


def test_mounts_that_stay_are_named_and_others_noticed(tmp_path: Path) -> None:
    """Nothing is said of quiet mounts; a new one, a lost one and one that was undone are told."""
    at = tmp_path / "a name\twith blanks\r\x0c\x85and ends of lines"
    at.mkdir()
    with (
        _namespace() as shell,
        closing(MountWatch(Path(f"/proc/{shell.pid}/root"))) as whole,
    ):
        _do(shell, "ls / >/dev/null")
        assert whole.changed() is None
        _do(shell, f"mount -t tmpfs none '{at}'")
        with closing(MountWatch(Path(f"/proc/{shell.pid}/root"))) as later:
            assert whole.changed() == f"now also {str(at)!r} (tmpfs)"
            assert later.changed() is None
            _do(shell, f"umount '{at}'")
            assert later.changed() == f"no longer {str(at)!r} (tmpfs)"
            assert whole.changed() == "what it was is gone again"
