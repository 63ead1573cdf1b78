"""Makes the repositories of ``table.py``, each by the git commands that a user would type.

Rules: one function a row, of the row's name; it returns the directory to run in. Nothing is fetched:
packages come from a folder of wheels of our own.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

from _git import Repo
from _wheels import make_sdist, make_wheel
from _wheels import sha256 as sha256_of
from sealrun.image import install

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TRAIN = 'print("loss: 1.0")\n'
WITH_PACKAGE = 'import aa\nprint("loss:", aa.VERSION)\n'
PROJECT = """[project]
name = "demo"
version = "0.1"
requires-python = "{python}"
dependencies = [{wants}]
{more}
"""
MEMBER = """[project]
name = "lib"
version = "0.1"
requires-python = ">=3.11"

[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
"""
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
#: A program that runs the code cells of a notebook.
CELLS = b"""import json, sys
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]), {"__name__": "__main__"})
"""


def _project(wants: str = "", more: str = "", python: str = ">=3.11") -> str:
    return PROJECT.format(wants=wants, more=more, python=python)


def _committed(repo: Repo, files: Mapping[str, str | bytes]) -> Path:
    repo.commit(files)
    return repo.path


def _locked(repo: Repo, links: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write a project, let uv lock it, and commit it."""
    make_wheel(links, "aa", "1.0")
    repo.write(files)
    subprocess.run(
        [install.uv_command(), "lock", "--quiet", "--no-index", "--find-links", str(links)],
        cwd=repo.path,
        check=True,
    )
    return _committed(repo, {})


def requirements(repo: Repo, links: Path) -> Path:
    """The shape: ``requirements.txt`` alone."""
    make_wheel(links, "aa", "1.0")
    return _committed(repo, {"train.py": WITH_PACKAGE, "requirements.txt": "aa==1.0\n"})


def pylock(repo: Repo, links: Path) -> Path:
    """The shape: ``pylock.toml``, with a wheel in the commit."""
    wheel = make_wheel(links, "aa", "1.0")
    entry = f'{{path = "wheels/{wheel.name}", hashes = {{sha256 = "{sha256_of(wheel)}"}}}}'
    lock = 'lock-version = "1.0"\ncreated-by = "a test"\n'
    lock += f'[[packages]]\nname = "aa"\nversion = "1.0"\nwheels = [{entry}]\n'
    wheels = {f"wheels/{wheel.name}": wheel.read_bytes()}
    return _committed(repo, {"train.py": WITH_PACKAGE, "pylock.toml": lock, **wheels})


def uv_project(repo: Repo, links: Path) -> Path:
    """A uv project with ``uv.lock``."""
    return _locked(repo, links, {"train.py": WITH_PACKAGE, "pyproject.toml": _project('"aa"')})


def project_alone(repo: Repo, links: Path) -> Path:
    """The shape: ``pyproject.toml`` without a lock."""
    make_wheel(links, "aa", "1.0")
    return _committed(repo, {"train.py": WITH_PACKAGE, "pyproject.toml": _project('"aa"')})


def _with_member(repo: Repo, links: Path, sources: str) -> Path:
    files = {
        "train.py": 'import lib\nprint("loss:", lib.aa.VERSION)\n',
        "pyproject.toml": _project('"lib"', f"[tool.uv.sources]\n{sources}"),
        "lib/pyproject.toml": MEMBER.replace('">=3.11"', '">=3.11"\ndependencies = ["aa"]'),
        "lib/src/lib/__init__.py": "import aa\n",
    }
    return _locked(repo, links, files)


def workspace(repo: Repo, links: Path) -> Path:
    """A uv workspace."""
    members = '[tool.uv.workspace]\nmembers = ["lib"]\n'
    return _with_member(repo, links, f"lib = {{workspace = true}}\n{members}")


def path_dependency(repo: Repo, links: Path) -> Path:
    """A dependency by path."""
    return _with_member(repo, links, 'lib = {path = "lib"}\n')


def sdist_only(repo: Repo, links: Path) -> Path:
    """A dependency without a wheel."""
    make_sdist(links, "aa", "1.0")
    return _committed(repo, {"train.py": WITH_PACKAGE, "requirements.txt": "aa==1.0\n"})


def extension(repo: Repo, links: Path) -> Path:
    """A C extension of the project's own."""
    build = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    setup = (
        'from setuptools import Extension, setup\nsetup(ext_modules=[Extension("m", ["m.c"])])\n'
    )
    files = {"pyproject.toml": _project(more=build), "setup.py": setup, "m.c": "int x;\n"}
    return _locked(repo, links, {"train.py": TRAIN, **files})


def pinned(repo: Repo, links: Path) -> Path:
    """The shape: ``.python-version`` of the base's version."""
    files = {"train.py": WITH_PACKAGE, "pyproject.toml": _project('"aa"')}
    return _locked(repo, links, files | {".python-version": "3.11\n"})


def pinned_elsewhere(repo: Repo, links: Path) -> Path:
    """The shape: ``.python-version`` that the base does not have."""
    files = {"train.py": WITH_PACKAGE, "pyproject.toml": _project('"aa"', python=">=3.9")}
    return _locked(repo, links, files | {".python-version": "3.9\n"})


def requires_more(repo: Repo, _links: Path) -> Path:
    """The shape: ``requires-python`` that no Python satisfies."""
    return _committed(repo, {"train.py": TRAIN, "pyproject.toml": _project(python=">=3.99")})


def script(repo: Repo, _links: Path) -> Path:
    """A script alone."""
    return _committed(repo, {"train.py": TRAIN})


def no_python(repo: Repo, _links: Path) -> Path:
    """No Python at all."""
    return _committed(repo, {"train.sh": "echo loss: 1.0\n", "Makefile": "all:\n\tsh train.sh\n"})


def notebook(repo: Repo, links: Path) -> Path:
    """A notebook."""
    make_wheel(links, "cells", "1.0", {"cells.py": CELLS})
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# a night\n"]},
        {"cell_type": "code", "metadata": {}, "outputs": [], "source": [TRAIN]},
    ]
    notebook = json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})
    return _committed(repo, {"train.ipynb": notebook, "requirements.txt": "cells\n"})


def submodule(repo: Repo, links: Path) -> Path:
    """A submodule that is checked out."""
    other = Repo.create(links / "other")
    other.commit({"__init__.py": "VERSION = '1.0'\n"})
    repo.write({"train.py": WITH_PACKAGE})
    allowed = ("-c", "protocol.file.allow=always")
    repo.git(*allowed, "submodule", "--quiet", "add", str(other.path), "aa")
    return _committed(repo, {})


def submodule_missing(repo: Repo, links: Path) -> Path:
    """A submodule that is not checked out."""
    submodule(repo, links)
    repo.git("submodule", "--quiet", "deinit", "--force", "aa")
    return repo.path


def lfs(repo: Repo, _links: Path) -> Path:
    """Files in Git LFS."""
    return _committed(
        repo,
        {
            "train.py": TRAIN,
            "weights.bin": POINTER,
            ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
        },
    )


def symlinks(repo: Repo, _links: Path) -> Path:
    """Symbolic links inside the tree."""
    repo.write({"src/real.py": TRAIN})
    (repo.path / "train.py").symlink_to("src/real.py")
    (repo.path / "all").symlink_to("src")
    return _committed(repo, {})


def symlink_outside(repo: Repo, _links: Path) -> Path:
    """A symbolic link that leaves the tree."""
    (repo.path / "data").symlink_to("/etc")
    return _committed(repo, {"train.py": TRAIN})


def crlf(repo: Repo, _links: Path) -> Path:
    """Line endings that git converts."""
    train = 'print("loss:", open("numbers.txt", newline="").read().rstrip("\\n"))\n'
    repo.write({".gitattributes": "*.txt text eol=crlf\n", "numbers.txt": b"1.0\r\n"})
    return _committed(repo, {"train.py": train})


def not_utf8(repo: Repo, _links: Path) -> Path:
    """File names that are not UTF-8."""
    train = 'print("loss:", open(b"caf\\xe9.txt").read())\n'
    return _committed(repo, {"train.py": train, os.fsdecode(b"caf\xe9.txt"): "1.0"})


def many_files(repo: Repo, _links: Path) -> Path:
    """20,000 files."""
    files = {f"data/{number // 200}/{number}.txt": f"{number}\n" for number in range(20_000)}
    return _committed(repo, {"train.py": TRAIN, **files})


def sha256(repo: Repo, _links: Path) -> Path:
    """The SHA-256 object format."""
    other = Repo.create(repo.path.parent / "other", "--object-format=sha256")
    return _committed(other, {"train.py": TRAIN})


def shallow(repo: Repo, _links: Path) -> Path:
    """A shallow clone."""
    repo.commit({"train.py": "print(0)\n"})
    repo.commit({"train.py": TRAIN})
    clone = repo.path.parent / "clone"
    repo.git("clone", "--quiet", "--depth=1", f"file://{repo.path}", str(clone))
    return clone


def detached(repo: Repo, _links: Path) -> Path:
    """A detached HEAD."""
    repo.commit({"train.py": TRAIN})
    repo.git("checkout", "--quiet", "--detach")
    return repo.path


def worktree(repo: Repo, _links: Path) -> Path:
    """A worktree of another repository."""
    repo.commit({"train.py": TRAIN})
    repo.git("worktree", "add", "--quiet", "../beside")
    return repo.path.parent / "beside"


def below(repo: Repo, _links: Path) -> Path:
    """A repository below another."""
    repo.commit({"train.py": "print('the outer one')\n"})
    return _committed(Repo.create(repo.path / "deep"), {"train.py": TRAIN})


def empty(repo: Repo, _links: Path) -> Path:
    """No commit yet."""
    repo.write({"train.py": TRAIN})
    return repo.path


def bare(repo: Repo, _links: Path) -> Path:
    """A bare repository."""
    repo.commit({"train.py": TRAIN})
    bare = repo.path.parent / "bare.git"
    repo.git("clone", "--quiet", "--bare", ".", str(bare))
    return bare


def none(repo: Repo, _links: Path) -> Path:
    """No repository."""
    alone = repo.path.parent / "alone"
    alone.mkdir()
    (alone / "train.py").write_text(TRAIN)
    return alone
