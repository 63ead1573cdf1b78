"""A repository of autoresearch's shape trains for real, with one word added to its run command.

Rules: everything in it is this test's own; what people's have is here: instructions for an agent, a
judge, one file to edit, a lock with torch, a kernel from a hub fetched at import, data below a
private home, ``torch.compile``, a checkpoint and other files written beside the code.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from _base import shared_base
from _cli import Cli
from _hub import Hub, serving
from sealrun.image import index, install
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _git import Repo

#: Where PyTorch's own CPU build lies, for a machine that is set up for no other place.
TORCH_WHEELS = "https://download.pytorch.org/whl/cpu/torch/"
KERNEL = {
    "build/torch-universal/__init__.py": b"""import torch

def rms_norm(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
""",
    "build/torch-universal/metadata.json": json.dumps(
        {
            "name": "tiny-norm",
            "id": "_tiny_norm_1",
            "version": 1,
            "license": "MIT",
            "python-depends": [],
            "backend": {"type": "cpu"},
        }
    ).encode(),
    "build/torch28-cu126-x86_64-linux/norm.so": b"for other machines" * 10_000,
}
PROGRAM = """# night research

Data is made once: `uv run prepare.py`. Then, again and again:

1. edit `train.py`, commit
2. run it: `uv run train.py > run.log 2>&1`
3. read it: `grep "^val_bpb:\\|^peak_vram_mb:" run.log`; nothing there means that it crashed
4. keep the commit if val_bpb got lower, else `git reset --hard HEAD~1`
"""
PREPARE = '''"""The data and the judge. Read-only for the loop."""

import math, os, sysconfig
from pathlib import Path

TIME_BUDGET = 300
CONTEXT = 32
CACHE_DIR = os.path.join(os.path.expanduser("~"), ".cache", "autoresearch")


def load(part):
    import torch

    content = bytearray(Path(CACHE_DIR, "data", f"{part}.bin").read_bytes())
    return torch.frombuffer(content, dtype=torch.uint8).long()


def evaluate_bpb(model):
    import torch

    text = load("validation")
    windows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)[:256]
    with torch.no_grad():
        return model(windows).item() / math.log(2)


if __name__ == "__main__":
    os.umask(0o077)
    data = Path(CACHE_DIR, "data")
    data.mkdir(parents=True)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for part, files in (("train", sources[5::5]), ("validation", sources[:5])):
        (data / f"{part}.bin").write_bytes(b"".join(f.read_bytes() for f in files))
'''
TRAIN = '''"""A small model of bytes. This file is the loop's to edit."""

import glob, hashlib, os, pathlib, py_compile, sys, time
import torch
from torch import nn
from torch.nn import functional
from kernels import get_kernel
from prepare import CONTEXT, evaluate_bpb, load

kernel = get_kernel("org/tiny-norm", revision="main")

SCALAR_LR = 0.5
MATRIX_LR = 0.02
STEPS = 60
WIDTH = 64


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.mix = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 256)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def read(self, x):
        return self.mix(self.bytes(x))[0]

    def loss(self, hidden, y):
        logits = self.head(kernel.rms_norm(hidden) * self.scale)
        return functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    def forward(self, window):
        return self.loss(self.read(window[:, :-1]), window[:, 1:])


def refused(action):
    try:
        action()
    except OSError:
        return 1
    return 0


torch.manual_seed(42)
started = time.time()
text = load("train")
model = Model()
model.loss = torch.compile(model.loss)
adam = torch.optim.Adam([p for n, p in model.named_parameters() if n != "scale"], MATRIX_LR)
plain = torch.optim.SGD([model.scale], SCALAR_LR)
for step in range(STEPS):
    starts = torch.randint(len(text) - CONTEXT, (32,))
    loss = model(text[starts[:, None] + torch.arange(CONTEXT + 1)])
    model.zero_grad()
    loss.backward()
    adam.step()
    plain.step()
    print(f"\\rstep {step:05d} loss {loss.item():.4f}", end="", flush=True)
print()
torch.save(model.state_dict(), "ckpt.pt")
os.makedirs("wandb/offline-run-1/files", exist_ok=True)
pathlib.Path("wandb/offline-run-1/files/wandb-summary.json").write_text("{}")
py_compile.compile("prepare.py")
here, old = pathlib.Path("train.py"), pathlib.Path("prepare.py")
stopped = [
    refused(lambda: old.write_text("TIME_BUDGET = 1")),
    refused(lambda: here.unlink()),
    refused(lambda: here.rename("train_old.py")),
    refused(lambda: pathlib.Path("ckpt.pt").rename("prepare.py")),
    refused(lambda: here.chmod(0o777)),
    refused(lambda: pathlib.Path(os.path.expanduser("~/.cache/autoresearch/data/x")).write_text("")),
]
compiled = glob.glob(os.environ["TORCHINDUCTOR_CACHE_DIR"] + "/**/*.so", recursive=True)
print("refused:", *stopped)
print("compiled:", bool(compiled), all(os.access(path, os.X_OK) for path in compiled))
print("python:", sys.version.split()[0], sys.executable)
print("hash:", hashlib.sha256(here.read_bytes()).hexdigest())
val_bpb = evaluate_bpb(model)
print("---")
print(f"training_seconds: {time.time() - started:.1f}")
print("peak_vram_mb:     0.0")
print(f"num_steps:        {STEPS}")
print(f"val_bpb:          {val_bpb:.6f}")
'''
PROJECT = """[project]
name = "research"
version = "0.1.0"
requires-python = ">=3.11,<3.12"
dependencies = ["torch==2.13.0", "kernels==0.17.2"]

[tool.uv]
package = false
environments = ["sys_platform == 'linux' and platform_machine == 'MACHINE'"]
""".replace("MACHINE", os.uname().machine)
IGNORED = "__pycache__/\n*.py[oc]\n.venv\nwandb/\nresults.tsv\n"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that holds one kernel."""
    with serving() as hub:
        hub.repo("org/tiny-norm", "kernel").push(KERNEL)
        yield hub


@pytest.fixture
def cli(repo: Repo, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """A command line in such a repository, of a user with a home of mode 0700 and prepared data."""
    wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or TORCH_WHEELS
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    user = private(tmp_path / "user")
    repo.write(
        {
            "program.md": PROGRAM,
            "prepare.py": PREPARE,
            "train.py": TRAIN,
            "pyproject.toml": PROJECT,
            ".python-version": "3.11\n",
            ".gitignore": IGNORED,
        }
    )
    environment = os.environ | index.uv_environment() | {"UV_FIND_LINKS": wheels}
    lock = [install.uv_command(), "lock", "--quiet", "--python", sys.executable]
    subprocess.run(lock, cwd=repo.path, env=environment, check=True)
    repo.commit({}, "baseline")
    home = {"HOME": str(user)}
    subprocess.run([sys.executable, "prepare.py"], cwd=repo.path, env=os.environ | home, check=True)
    cli = Cli(
        repo.path,
        tmp_path / "home",
        home | {"UV_FIND_LINKS": wheels, "HF_ENDPOINT": hub.url},
    )
    shared_base(cli.places, "debian-python-build")
    yield cli
    cli.stop_guard()


def _night(cli: Cli, repo: Repo) -> str:
    """Do what the instructions say: run as written there, output into ``run.log``."""
    told = (repo.path / "program.md").read_text()
    (command,) = re.findall(r"`(sealrun run -- [^`]*)`", told)
    assert command == "sealrun run -- uv run train.py > run.log 2>&1"
    whole = command.replace("sealrun", cli.program, 1)
    subprocess.run(["sh", "-c", whole], cwd=repo.path, env=cli.environment, check=False)
    return (repo.path / "run.log").read_text()


@pytest.mark.engine
@pytest.mark.soak(sample=True)
@pytest.mark.timeout(1500)
def test_it_trains_for_real(cli: Cli, repo: Repo, tmp_path: Path, hub: Hub) -> None:
    """After init, a commit and warm each run trains, is clean, leaves its files, and changes none."""
    cli("init", "--yes", "--no-hooks")
    policy = (repo.path / "sealrun.toml").read_text()
    assert 'base = "debian-python-build"' in policy
    assert 'source = "~/.cache/autoresearch"' in policy
    assert 'repository = "org/tiny-norm"' in policy
    repo.commit({}, "Run through sealrun")
    (fetched,) = cli.json("warm")["fetched"]
    # Nothing for other machines was fetched.
    assert fetched["size"] < 10_000
    asked = len(hub.asked)
    # What a bare night left lying about.
    private(repo.path / "__pycache__")
    (repo.path / "__pycache__" / "old.cpython-310.pyc").write_bytes(b"x")
    private(repo.path / "wandb")
    (repo.path / "results.tsv").write_text("commit\tval_bpb\n")

    log = _night(cli, repo)
    metrics = re.findall(r"^val_bpb: +(\S+)$", log, re.MULTILINE)
    assert len(metrics) == 1, log
    # Knowing nothing costs 8 bits a byte.
    assert float(metrics[0]) < 6
    assert len(hub.asked) == asked
    assert "refused: 1 1 1 1 1 1\n" in log
    assert "compiled: True True\n" in log
    assert re.search(r"^python: 3\.11\.\d+ /opt/env/bin/python", log, re.MULTILINE)
    (run,) = cli.json("log")["runs"]
    assert run["verdict"]["kind"] == "clean", log
    shown = cli.json("show", run["run"])["run"]
    assert shown["metric"]["value"] == float(metrics[0])
    assert shown["environment_source"] == "uv.lock"
    assert {d["target"] for d in shown["data"]} == {
        "/home/run/.cache/autoresearch",
        "/home/run/.cache/huggingface/hub/kernels--org--tiny-norm",
    }
    left = {one["path"] for one in shown["outputs"]}
    assert {
        "workdir/ckpt.pt",
        "workdir/wandb/offline-run-1/files/wandb-summary.json",
        "workdir/__pycache__/prepare.cpython-311.pyc",
    } <= left
    assert not any("caches" in path for path in left)
    assert not (repo.path / "ckpt.pt").exists()
    cli("outputs", run["run"], str(tmp_path / "best"))
    assert (tmp_path / "best" / "workdir" / "ckpt.pt").stat().st_size > 10_000

    # The next idea: nothing is made anew, and another number comes out.
    repo.write({"train.py": TRAIN.replace("SCALAR_LR = 0.5", "SCALAR_LR = 0.3")})
    repo.git("commit", "-q", "-a", "-m", "a lower rate")
    log = _night(cli, repo)
    second = re.findall(r"^val_bpb: +(\S+)$", log, re.MULTILINE)
    assert len(second) == 1, log
    assert second != metrics
    assert {r["verdict"]["kind"] for r in cli.json("log")["runs"]} == {"clean"}
