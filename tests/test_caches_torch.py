"""What torch.compile made in warm's command is found by each later run: counted, not timed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from _base import shared_base
from _cli import Cli
from sealrun.image import index, install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo

#: Where PyTorch's own CPU build lies, for a machine that is set up for no other place.
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu/torch/"
PROJECT = """[project]
name = "research"
version = "0.1.0"
requires-python = ">=3.11,<3.12"
dependencies = ["torch==2.13.0", "ninja==1.13.0"]

[tool.uv]
package = false
environments = ["sys_platform == 'linux' and platform_machine == 'MACHINE'"]
""".replace("MACHINE", os.uname().machine)
POLICY = '[image]\nbase = "debian-python-build"\n[sandbox]\ncaches = "warmed"\n'
SOURCE = 'extern "C" int answer(int x) { return x + 1; }\n'
#: Counts what the compiler found, what it made anew, and what it called the C++ compiler for.
TRAIN = """\
import ctypes, json, os, pathlib, torch
from torch._dynamo.utils import counters
from torch.utils import cpp_extension

cache = pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
before = {str(p) for p in cache.rglob("*.so")}
torch.manual_seed(0)
x = torch.randn(64, 64)
loss = torch.compile(lambda x: torch.nn.functional.gelu(x @ x.T).softmax(-1).sum())(x)
made = {str(p) for p in cache.rglob("*.so")} - before
extension = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"])
objects = {p: p.stat().st_mtime_ns for p in extension.rglob("*.o")}
cpp_extension.load("tiny", ["answer.cpp"], is_python_module=False)
(library,) = extension.rglob("tiny.so")
built = [p.name for p in extension.rglob("*.o") if objects.get(p) != p.stat().st_mtime_ns]
print(json.dumps({
    "hits": counters["inductor"]["fxgraph_cache_hit"],
    "misses": counters["inductor"]["fxgraph_cache_miss"],
    "made": len(made), "built": built, "answer": ctypes.CDLL(str(library)).answer(41),
}))
print(f"val_bpb: {loss.item():.6f}")
"""


@pytest.fixture
def cli(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """A command line in a repository whose lock holds torch."""
    wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or TORCH_WHEELS
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    repo.write(
        {"answer.cpp": SOURCE, "train.py": TRAIN, "pyproject.toml": PROJECT, "sealrun.toml": POLICY}
    )
    environment = os.environ | index.uv_environment() | {"UV_FIND_LINKS": wheels}
    lock = [install.uv_command(), "lock", "--quiet", "--python", sys.executable]
    subprocess.run(lock, cwd=repo.path, env=environment, check=True)
    repo.commit({}, "baseline")
    cli = Cli(repo.path, repo.path.parent / "home", {"UV_FIND_LINKS": wheels})
    shared_base(cli.places, "debian-python-build")
    yield cli
    cli.stop_guard()


def _found(text: str) -> dict[str, Any]:
    (line,) = re.findall(r"[{]\"hits\".*[}]", text)
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.engine
@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_run_compiles_nothing_that_warm_compiled(cli: Cli, repo: Repo) -> None:
    """Each graph and extension is found, none made anew, in every run until its source changes."""
    command = ("--", "python3", "train.py")
    done = cli("warm", "--seconds", "900", *command, timeout=1800)
    assert "it ended by itself" in done.stderr
    first = _found(done.stderr)
    assert (first["hits"], first["misses"], first["answer"]) == (0, 1, 42)
    assert first["made"] > 0
    assert first["built"] == ["answer.o"]
    nothing = {"hits": 1, "misses": 0, "made": 0, "built": [], "answer": 42}
    assert _found(cli("run", *command, timeout=1200).stdout) == nothing
    repo.commit({"train.py": TRAIN + "print('another idea')\n"})
    assert _found(cli("run", *command, timeout=1200).stdout) == nothing
    # ninja compares times, and in an image a changed source has the time of the one before it.
    repo.commit({"answer.cpp": SOURCE.replace("1", "2")})
    anew = _found(cli("run", *command, timeout=1200).stdout)
    assert (anew["hits"], anew["built"], anew["answer"]) == (0, ["answer.o"], 43)
