"""A user of this machine who is not root, for tests that root runs.

Rules: the user has a repository ``work``, a home of its own, and no capability but those that a test
gives; the interpreter of the tests may lie in a home that only root can enter, so ``REACH`` is one.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

#: Its uid and gid; nobody of this machine has them.
USER = 1234
REACH = "+dac_read_search"
_WHO = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")


def as_user(
    root: Path,
    script: str,
    *,
    state: Path,
    capabilities: str = REACH,
    groups: Collection[int] = (),
) -> str:
    """Run a script of the user's in ``work`` to its end and return what it printed.

    Args:
        root: holds ``work`` and ``home``.
        script: for bash.
        state: where sealrun's state stands.
        capabilities: as setpriv takes them.
        groups: that the user is in too.
    """
    also = ("--groups", ",".join(map(str, groups))) if groups else ("--clear-groups",)
    done = subprocess.run(
        [
            *("setpriv", "--reuid", str(USER), "--regid", str(USER), *also),
            *("--inh-caps", capabilities, "--ambient-caps", capabilities, "bash", "-ec", script),
        ],
        cwd=root / "work",
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(root / "home"),
            "SEALRUN_HOME": str(state),
            **dict.fromkeys(_WHO, "a@example.org"),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
