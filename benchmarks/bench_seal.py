"""Seal and load after a one-line change, against ``docker build`` of the same tree.

Every round changes one line, commits it, and then times each contender on that commit, in an order
that rotates; what is shown are medians and their ratios. Both builders copy the working directory
on top of the same base, with a warm cache. Nothing is removed between rounds: ext4 looks for
inodes that were not freed lately, and right after a large removal every new file is slow, for
whoever comes first. Images, and the build cache's new records, are removed at the end.

    python benchmarks/bench_seal.py --quick
    python benchmarks/bench_seal.py --size 2000:10000 --rounds 7
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.git import Repository
from sealrun.image import tar
from sealrun.image.archive import stack
from sealrun.image.load import EngineImages, load
from sealrun.image.model import Base, Environment, Platform
from sealrun.image.seal import seal
from sealrun.image.store import LayerStore
from sealrun.image.tree_layer import TreeLayers
from sealrun.progress import Silent
from sealrun.tree import Spool, read_commit

if TYPE_CHECKING:
    from collections.abc import Callable

    from sealrun.image.model import Layer, SealedImage

#: Files and bytes of each.
SIZES = ("3:2000", "2000:10000", "20000:10000")
QUICK = ("3:2000", "300:10000")
#: How many times slower than us each builder has to be, by number of files.
TARGETS = {"buildkit": (1.0, 1.0, 1.0), "classic": (2.0, 3.5, 3.5)}

_OURS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from bench_seal import Ours
Ours(Path(sys.argv[2]), Path(sys.argv[3])).once()
"""


def client() -> Any:  # noqa: ANN401 - docker-py ships no types
    """Connect to the engine that DOCKER_HOST names, or the default one."""
    import docker

    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    return docker.APIClient(base_url=url, version="1.41", timeout=600)


class Ours:
    """Reads the commit, seals it and loads it: all that a run does before it makes a container."""

    def __init__(self, workspace: Path, home: Path) -> None:
        self.workspace, self.home = workspace, home
        self.engine = client()

    def base_layer(self) -> Layer:
        """Write the base: one layer with one file, random so that no engine has it yet."""
        mark = self.home / "mark"
        if not mark.exists():
            mark.write_bytes(os.urandom(1 << 20))
        content = mark.read_bytes()
        with LayerStore(_made(self.home / "layers")).writer() as writer:
            writer.write(tar.header(b"etc/mark", tar.FILE, 0o644, len(content)))
            writer.write(content + tar.END)
            return writer.commit()

    def once(self) -> tuple[SealedImage, dict[str, float]]:
        """Do it for HEAD; return the image and the seconds of each step."""
        times = [time.perf_counter()]
        repository = Repository.find(self.workspace)
        spool = Spool(_made(self.home / "spool"), repository.algorithm)
        tree = read_commit(repository, repository.resolve(), spool)
        times.append(time.perf_counter())
        record = json.loads((self.home / "base.json").read_bytes())
        layer = LayerStore(self.home / "layers").get(record["diff_id"], record["size"])
        if layer is None:
            raise SystemExit("the base layer is gone")
        base = Base("benchmark", Platform(), (layer,), None, None, None)
        trees = TreeLayers(_made(self.home / "trees"))
        sealed = seal(tree, base, Environment("none", None, None), trees)
        times.append(time.perf_counter())
        load(sealed.image, self.engine)
        times.append(time.perf_counter())
        names = ("read", "seal", "load")
        return sealed.image, {n: b - a for n, a, b in zip(names, times, times[1:], strict=False)}

    def prepare(self) -> None:
        """Make the base and its record."""
        layer = self.base_layer()
        text = json.dumps({"diff_id": layer.diff_id, "size": layer.size})
        (self.home / "base.json").write_text(text)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@dataclass
class Bench:
    """One size of tree."""

    files: int
    size: int
    root: Path
    docker: str
    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    steps: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    built: list[str] = field(default_factory=list[str])
    sealed: list[SealedImage] = field(default_factory=list["SealedImage"])

    def __post_init__(self) -> None:
        self.workspace = _made(self.root / "workspace")
        self.home = _made(self.root / "home")
        self.ours = Ours(self.workspace, self.home)

    def prepare(self) -> None:
        """Write the tree, commit it, and let every contender do its first, cold, build."""
        source = random.Random(self.files)  # noqa: S311 - content, not a secret
        for n in range(self.files):
            file = _made(self.workspace / f"d{n // 100}") / f"f{n}.py"
            file.write_bytes(source.randbytes(self.size))
        self._git("init", "--quiet")
        self._git("add", "--all")
        self.ours.prepare()
        self.change(0)
        image, _ = self.ours.once()
        self.sealed.append(image)
        base = self.ours.engine.images(name="sealrun-base")
        layers = [image.base.layers[0].diff_id]
        tags = [t for i in base for t in i["RepoTags"] or () if self._layers(t) == layers]
        (self.root / "Dockerfile").write_text(f"FROM {tags[0]}\nCOPY . /workspace\n")
        self.build(buildkit=True)
        self.build(buildkit=False)

    def _layers(self, tag: str) -> list[str]:
        layers: list[str] = self.ours.engine.inspect_image(tag)["RootFS"]["Layers"]
        return layers

    def _git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
        subprocess.run(["git", "-C", str(self.workspace), *identity, *arguments], check=True)

    def change(self, number: int) -> None:
        """Change one line and commit it."""
        (self.workspace / "d0" / "f0.py").write_text(f"SCALAR_LR = 0.{number}\n")
        self._git("commit", "--quiet", "--all", "--message", f"try 0.{number}")

    def build(self, *, buildkit: bool) -> None:
        """Build the working directory with one of Docker's builders."""
        (self.workspace / ".dockerignore").write_text(".git\n")
        result = subprocess.run(
            [self.docker, "build", "--quiet", "--file", "../Dockerfile", "."],
            cwd=self.workspace,
            env={**os.environ, "DOCKER_BUILDKIT": str(int(buildkit))},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise SystemExit(f"docker build failed: {result.stderr}")
        image_id = result.stdout.strip()
        if image_id in self.built:
            raise SystemExit("a builder took an earlier image for a changed tree")
        self.built.append(image_id)

    def process(self) -> None:
        """Seal and load in a process of its own, start-up and imports included."""
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", _OURS, here, str(self.workspace), str(self.home)]
        subprocess.run(command, check=True)

    def inside(self) -> None:
        """Seal and load in this process."""
        image, steps = self.ours.once()
        self.sealed.append(image)
        self.steps.append(steps)

    def start(self) -> None:
        """Start Docker's client and nothing else."""
        subprocess.run([self.docker, "--version"], check=True, capture_output=True)

    def run(self, rounds: int) -> None:
        """Time every contender once a round, each on a commit that it has not seen."""
        contenders: list[tuple[str, Callable[[], None]]] = [
            ("sealrun", self.process),
            ("buildkit", lambda: self.build(buildkit=True)),
            ("sealrun, in process", self.inside),
            ("classic", lambda: self.build(buildkit=False)),
            ("docker --version", self.start),
        ]
        number = 1
        for round_number in range(rounds):
            turn = round_number % len(contenders)
            for name, contender in contenders[turn:] + contenders[:turn]:
                self.change(number)
                number += 1
                gc.collect()
                began = time.perf_counter()
                contender()
                self.seconds.setdefault(name, []).append(time.perf_counter() - began)

    def report(self, place: int) -> None:
        """Print medians, ratios and whether each target is met."""
        middle = {name: statistics.median(values) for name, values in self.seconds.items()}
        print(f"\n{self.files} files, {self.files * self.size / 1e6:.1f} MB, medians of seconds")
        for name, value in middle.items():
            spread = f"{min(self.seconds[name]):.3f} to {max(self.seconds[name]):.3f}"
            print(f"  {name:22} {value:8.3f}   ({spread})")
        for step in ("read", "seal", "load"):
            value = statistics.median(steps[step] for steps in self.steps)
            print(f"    in process: {step:8} {value:8.3f}")
        for builder, targets in TARGETS.items():
            target = targets[min(place, len(targets) - 1)]
            whole = middle[builder] / middle["sealrun"]
            bare = (middle[builder] - middle["docker --version"]) / middle["sealrun, in process"]
            met = "met" if min(whole, bare) >= target else "MISSED"
            print(
                f"  {builder} / sealrun: {whole:.2f} with start-up, {bare:.2f} without "
                f"(target {target:g}: {met})"
            )

    def clean(self) -> None:
        """Remove every image that this made."""
        for image in self.sealed[:1]:
            EngineImages(self.ours.engine, Silent()).forget(stack(image))
        for image_id in self.built:
            subprocess.run(
                [self.docker, "rmi", "--force", image_id], capture_output=True, check=False
            )


def cache_records(engine: Any) -> set[str]:  # noqa: ANN401 - docker-py ships no types
    """Return the ids of the build cache's records."""
    return {record["ID"] for record in engine.df()["BuildCache"] or ()}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", action="append", help="FILES:BYTES, repeatable")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two small sizes, three rounds")
    parser.add_argument("--docker", default="/usr/bin/docker", help="a client that has BuildKit")
    options = parser.parse_args()
    docker = options.docker if shutil.which(options.docker) else "docker"
    sizes = options.size or (QUICK if options.quick else SIZES)
    rounds = 3 if options.quick else options.rounds
    engine = client()
    before = cache_records(engine)
    benches: list[Bench] = []
    try:
        with tempfile.TemporaryDirectory(prefix="sealrun-bench-") as directory:
            for place, text in enumerate(sizes):
                files, size = (int(part) for part in text.split(":"))
                bench = Bench(files, size, _made(Path(directory) / str(files)), docker)
                benches.append(bench)
                bench.prepare()
                bench.run(rounds)
                bench.report(place)
    finally:
        for bench in benches:
            bench.clean()
        for record in cache_records(engine) - before:
            engine.prune_builds(filters={"id": [record]})


if __name__ == "__main__":
    main()
