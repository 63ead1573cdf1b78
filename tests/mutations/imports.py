"""Files beside the tracked ones that change what a command does: in a container they are not there.

``sealrun watch`` finds them, for loops that run without one.
"""

from __future__ import annotations

import sys

from mutations.technique import By, Technique, python

_EXTRA = (By.IMPORTABLE,)
#: Compiles other code and files it as what the tracked source was compiled to (PEP 552's formats).
_FORGED = """
import importlib.util, marshal, os, struct
source, status = 'pkg/deep/model.py', os.stat('pkg/deep/model.py')
code = marshal.dumps(compile('WIDTH = 32', source, 'exec'))
head = {head}
target = importlib.util.cache_from_source(source)
os.makedirs(os.path.dirname(target), exist_ok=True)
open(target, 'wb').write(importlib.util.MAGIC_NUMBER + head + code)
"""
_BY_TIME = "struct.pack('<III', 0, int(status.st_mtime), status.st_size)"
_UNCHECKED = "struct.pack('<I', 1) + bytes(8)"
_CACHED = f"pkg/deep/__pycache__/model.{sys.implementation.cache_tag}.pyc".encode()
_VENV = (
    "site=.venv/lib/python3.11/site-packages\nmkdir -p $site\n"
    "echo 'home = /usr/bin' > .venv/pyvenv.cfg\necho 'x = 1' > $site/library.py\n"
    "echo .venv >> .git/info/exclude"
)
_SITE = ".venv/lib/python3.11/site-packages"


def _write(name: str, path: str, *, hidden: bool = False) -> Technique:
    ignored = f"echo {path} >> .git/info/exclude" if hidden else ""
    act = f"echo 'import os' | tee {path} >/dev/null"
    return Technique(name, act, "tee", found=_EXTRA, path=path.encode(), setup=ignored, final=False)


TECHNIQUES = (
    Technique(
        "bytecode forged under the source's time and size", python(_FORGED.format(head=_BY_TIME)),
        "python", found=_EXTRA, path=_CACHED, final=False,
    ),
    Technique(
        "bytecode that is never checked against its source",
        python(_FORGED.format(head=_UNCHECKED)),
        "python", found=_EXTRA, path=_CACHED, final=False,
    ),
    Technique(
        "bytecode without a source",
        python("import py_compile\npy_compile.compile('prepare.py', 'helper.pyc')"),
        "python", found=_EXTRA, path=b"helper.pyc", final=False,
    ),
    _write("a start-up hook (sitecustomize)", "sitecustomize.py"),
    _write("a start-up hook (usercustomize), ignored by git", "usercustomize.py", hidden=True),
    _write("a test hook", "conftest.py"),
    _write("a path file", "local.pth"),
    _write("a module in front of the standard library's", "json.py"),
    _write("a module that git ignores", "helper.py", hidden=True),
    _write("settings that tools read", "pyproject.toml"),
    _write("an environment file", ".env", hidden=True),
    Technique(
        "a package in front of a tracked module",
        "mkdir train\necho 'SCALAR_LR = 0.3' > train/__init__.py", "bash",
        found=_EXTRA, path=b"train/__init__.py", final=False,
    ),
    Technique(
        "an extension module in front of a tracked one", "cp weights.bin prepare.so", "cp",
        found=_EXTRA, path=b"prepare.so", final=False,
    ),
    Technique(
        "a path file in the installed environment", f"echo 'import os' > {_SITE}/evil.pth", "bash",
        found=_EXTRA, path=f"{_SITE}/evil.pth".encode(), setup=_VENV, final=False,
    ),
    Technique(
        "an installed module edited", f"sed -i s/1/2/ {_SITE}/library.py", "sed",
        found=_EXTRA, path=f"{_SITE}/library.py".encode(), setup=_VENV, final=False,
    ),
)  # fmt: skip
