"""Shapes of repositories, and what sealrun answers to each: one list for the test and the manual.

Rules: data alone, so that the manual can be built without the tests; each row has a builder of the
same name in ``build.py``, and ``test_shapes.py`` holds every row to the program.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One shape.

    Attributes:
        name: of the builder.
        holds: what the repository is, for the manual.
        command: what is run in it.
        says: for a shape that runs, its output; for one that is refused, the words that name why.
        status: of ``sealrun warm``: 0 it runs, 121 refused, 2 there is nothing that could run.
        cold: ``warm`` alone can tell; ``run`` answers 125 and names it.
        note: what else a user should know.
        heavy: too slow for every run of the tests.
    """

    name: str
    holds: str
    command: tuple[str, ...]
    says: str
    status: int = 0
    note: str = ""
    cold: bool = False
    heavy: bool = False


_PYTHON = ("python3", "train.py")
_UV = ("uv", "run", "train.py")
_LOSS = "loss: 1.0\n"

ROWS = (
    Row(
        "requirements", "`requirements.txt` alone", _PYTHON, _LOSS, note="resolved once, by `warm`"
    ),
    Row("pylock", "`pylock.toml`, with a wheel in the commit", _PYTHON, _LOSS),
    Row("uv_project", "a uv project with `uv.lock`", _UV, _LOSS, note="`uv run` as it is"),
    Row(
        "project_alone",
        "`pyproject.toml` without a lock",
        _UV,
        _LOSS,
        note="resolved once, by `warm`",
        heavy=True,
    ),
    Row("workspace", "a uv workspace", _UV, _LOSS, note="members are imported from the commit"),
    Row(
        "path_dependency",
        "a dependency by path",
        _UV,
        _LOSS,
        note="imported from the commit",
        heavy=True,
    ),
    Row(
        *("sdist_only", "a dependency without a wheel", _PYTHON),
        *("is available only as a source distribution", 121),
        note="`build_sdists = true` builds it in a container",
        cold=True,
    ),
    Row(
        *("extension", "a C extension of the project's own", _UV),
        *("has to be compiled before it can be imported", 121),
        note="publish or commit it as a wheel",
        cold=True,
    ),
    Row("pinned", "`.python-version` of the base's version", _UV, _LOSS, heavy=True),
    Row(
        *("pinned_elsewhere", "`.python-version` that the base does not have", _UV, _LOSS),
        note="`warm` obtains that Python through uv",
        # tests/test_interpreter.py runs one at every time.
        heavy=True,
    ),
    Row(
        *("requires_more", "`requires-python` that no Python satisfies", _UV),
        *("requires Python >=3.99, but the base has 3.11", 121),
        note="name a base that has it",
        cold=True,
    ),
    Row("script", "a script alone", _PYTHON, _LOSS, note="with the standard library"),
    Row(
        "no_python", "no Python at all", ("sh", "train.sh"), _LOSS, note="what Debian's base holds"
    ),
    Row(
        *("notebook", "a notebook", ("python3", "-m", "cells", "train.ipynb"), _LOSS),
        note="run by a program from the lock; nothing is written back to it",
    ),
    Row(
        "submodule",
        "a submodule that is checked out",
        _PYTHON,
        _LOSS,
        note="its files are sealed too",
    ),
    Row(
        *("submodule_missing", "a submodule that is not checked out", _PYTHON),
        *("the submodule is not there", 121),
    ),
    Row(
        *("lfs", "files in Git LFS", _PYTHON, "Git LFS", 121),
        note="their content is in no commit: name it as `[[data]]`",
    ),
    Row("symlinks", "symbolic links inside the tree", _PYTHON, _LOSS),
    Row(
        "symlink_outside",
        "a symbolic link that leaves the tree",
        _PYTHON,
        "leads out of the tree",
        121,
    ),
    Row(
        *("crlf", "line endings that git converts", _PYTHON, _LOSS),
        note="the container has the committed bytes, the workspace what git checks out",
    ),
    Row("not_utf8", "file names that are not UTF-8", _PYTHON, _LOSS),
    Row("many_files", "20,000 files", _PYTHON, _LOSS, heavy=True),
    Row("sha256", "the SHA-256 object format", _PYTHON, _LOSS, heavy=True),
    Row("shallow", "a shallow clone", _PYTHON, _LOSS, heavy=True),
    Row("detached", "a detached HEAD", _PYTHON, _LOSS, heavy=True),
    Row(
        "worktree",
        "a worktree of another repository",
        _PYTHON,
        _LOSS,
        note="one record for all worktrees",
    ),
    Row("below", "a repository below another", _PYTHON, _LOSS, note="the inner one counts"),
    Row("empty", "no commit yet", _PYTHON, "has no commit yet", 2),
    Row("bare", "a bare repository", _PYTHON, "is a bare repository", 2),
    Row("none", "no repository", _PYTHON, "is not in a git repository", 2),
)
