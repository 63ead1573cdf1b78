"""NVIDIA's GPUs through a real engine's device requests: only the toolkit's hook is a stand-in.

The engine is one of the test's own. It finds the hook on its path as it would find NVIDIA's, and hands
it the device request; the hook does in the container what NVIDIA's does, with ``/dev/null``'s numbers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from _cli import Cli
from _devices import fake_nvml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _git import Repo

pytestmark = [pytest.mark.engine, pytest.mark.soak(sample=True)]

TRAIN = """\
import os, pathlib
dev = pathlib.Path("/dev")
print("devices", sorted(p.name for p in dev.iterdir() if p.name.startswith("nvidia")))
print("counts", os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"))
print("library", pathlib.Path("/usr/lib/x86_64-linux-gnu/libcuda.so.1").read_text())
print("val_bpb: 1.0")
"""
_HOOK = """\
#!{python}
import json, pathlib, subprocess, sys
state = json.load(sys.stdin)
config = json.loads((pathlib.Path(state["bundle"]) / "config.json").read_text())
variables = dict(entry.split("=", 1) for entry in config["process"]["env"])
here = pathlib.Path({here!r})
with (here / "asked").open("a") as log:
    log.write(variables["NVIDIA_VISIBLE_DEVICES"] + " " + variables["NVIDIA_DRIVER_CAPABILITIES"] + "\\n")
numbers = [uuid.split("-")[1][0] for uuid in variables["NVIDIA_VISIBLE_DEVICES"].split(",")]
if (here / "generous").exists():
    numbers.append("9")
subprocess.run(
    ["nsenter", "--target", str(state["pid"]), "--mount", "sh", "-ec", (here / "inject").read_text(),
     "inject", config["root"]["path"], str(here / "libcuda"), *numbers], check=True)
"""
_INJECT = """\
root=$1 library=$2; shift 2
for name in ctl -uvm -uvm-tools "$@"; do mknod -m 666 "$root/dev/nvidia$name" c 1 3; done
cd "$root/usr/lib/x86_64-linux-gnu"
touch libcuda.so.550.54.15
mount --bind "$library" libcuda.so.550.54.15
mount -o remount,bind,ro,nosuid,nodev libcuda.so.550.54.15
ln -s libcuda.so.550.54.15 libcuda.so.1
ln -s libcuda.so.1 libcuda.so
echo cache >"$root/etc/ld.so.cache"
"""
#: As in test_image_engines: nothing of the host's own engine is touched.
_SECOND = """
mount -t tmpfs tmpfs /run && exec dockerd --host "unix://$1/engine.sock" \
  --data-root "$1/data" --exec-root /run/second --pidfile "$1/engine.pid" \
  --bridge none --iptables=false --ip6tables=false --containerd-namespace sealrun-gpu \
  --containerd-plugins-namespace sealrun-gpu-plugins
"""


@pytest.fixture
def toolkit() -> Iterator[Path]:
    """An engine that knows a toolkit; its directory holds the socket and what the hook leaves."""
    directory = Path(tempfile.mkdtemp(prefix="sealrun-"))
    hook = directory / "bin/nvidia-container-runtime-hook"
    hook.parent.mkdir()
    hook.write_text(_HOOK.format(python=sys.executable, here=str(directory)))
    hook.chmod(0o755)
    (directory / "inject").write_text(_INJECT)
    (directory / "libcuda").write_text("the driver's")
    command = ["unshare", "--mount", "--net", "sh", "-c", _SECOND, "second", str(directory)]
    path = f"{hook.parent}:{os.environ['PATH']}"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"PATH": path}, start_new_session=True
        )
    query = ["docker", "-H", f"unix://{directory}/engine.sock", "info"]
    try:
        while subprocess.run(query, capture_output=True, check=False).returncode:
            assert process.poll() is None, (directory / "log").read_text()
            time.sleep(0.1)
        yield directory
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(directory)


def test_an_nvidia_gpu_reaches_the_experiment(toolkit: Path, repo: Repo) -> None:
    """Asked for by uuid, alone in the container, no mutation; one GPU too many is a fault."""
    repo.commit({"train.py": TRAIN}, "baseline")
    root = repo.path.parent
    variables = fake_nvml(root / "nvml") | {
        "FAKE_GPUS": "4",
        "FAKE_USER": f"2:{os.getpid()}",
        "CUDA_VISIBLE_DEVICES": "2,1",
        "SEALRUN_LEASES": str(root / "leases"),
        "DOCKER_HOST": f"unix://{toolkit}/engine.sock",
        "PATH": f"{toolkit}/bin:{os.environ['PATH']}",
    }
    cli = Cli(repo.path, root / "home", variables).with_base()
    try:
        # What the toolkit brings is no discrepancy here either.
        assert "it ended by itself" in cli("warm", "--", "python3", "train.py").stderr
        for _ in range(2):
            result, done = cli.run("python3", "train.py")
            assert (
                "devices ['nvidia-uvm', 'nvidia-uvm-tools', 'nvidia1', 'nvidia2', 'nvidiactl']"
                in (done.stdout)
            )
            assert "counts 1,0 PCI_BUS_ID" in done.stdout
            assert "library the driver's" in done.stdout
            assert result["verdict"] == "clean", result
            assert "gpu-shared" in {reason["code"] for reason in result["reasons"]}
        uuids = [f"GPU-{n}0000000-1111-2222-3333-444444444444" for n in (2, 1)]
        asked = (toolkit / "asked").read_text().splitlines()
        assert asked == [f"{','.join(uuids)} compute,utility"] * 3
        shown = cli("show", result["run"]).stdout
        for word in (*uuids, "550.54.15", "CUDA 12.4", "NVIDIA H100 80GB HBM3"):
            assert word in shown
        (toolkit / "generous").touch()
        done = cli("run", "--", "python3", "train.py", status=125)
        assert "nobody asked for the device /dev/nvidia9" in done.stderr
        assert "counts" not in done.stdout
    finally:
        cli.stop_guard()
