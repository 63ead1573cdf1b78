"""A run on record with everything that a statement tells of, made without an engine.

The repository, the ledger and the files are real; only the run itself never ran.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from _ledger import alert, ended, opened
from sealrun.image.archive import stack
from sealrun.image.model import Base, Environment, Platform
from sealrun.image.seal import seal
from sealrun.image.store import LayerStore
from sealrun.image.tree_layer import TreeLayers
from sealrun.ledger import (
    Because,
    Coverage,
    DataFacts,
    EngineFacts,
    ForeignState,
    HostFacts,
    Judgement,
    LayerFacts,
    LoadingFacts,
    MetricFacts,
    OutputFile,
    Pin,
    PolicyFacts,
    RunProgress,
    new_ulid,
    open_ledger,
)
from sealrun.leftovers import identify
from sealrun.reproduce.rebuild import Stored

if TYPE_CHECKING:
    from pathlib import Path

    from _git import Repo
    from sealrun.image.model import Layer
    from sealrun.ledger import Ledger
    from sealrun.state import Places

LOG = b"val_bpb: 0.9979\n\x1b[31mcolours\x1b[0m\n"
MODEL = b"weights" * 1000
NOTES = b"beside the code"
LOCK = "requests==2.32.0\n"
BASE, WHEELS = b"a base" * 200, b"wheels" * 300
FOREIGN = b"SCALAR_LR = 0.3\n"
#: A name that is not UTF-8 and one that a terminal would obey.
ODD = b"odd \xff\x1b[2J name"


def sha256(content: bytes) -> str:
    """Return hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@dataclass
class Site:
    """A repository with a home."""

    repo: Repo
    places: Places

    @property
    def id(self) -> str:
        """Id of the repository."""
        return identify(self.repo.find())

    @property
    def stored(self) -> Stored:
        """Where its runs are kept."""
        return Stored(self.repo.find(), self.id, self.places)

    def ledger(self) -> Ledger:
        """Open its ledger for writing."""
        return open_ledger(
            self.places.ledger(self.id), self.id, pinned_refs_exist=False, create=True
        )

    def directory(self, run: str) -> Path:
        """Return a run's directory."""
        return self.places.run(self.id, run)

    def run(self, *, idea: str = "an idea", data: tuple[DataFacts, ...] = (), **end: Any) -> str:  # noqa: ANN401 - fields of the end
        """Record a flagged run of a new commit, with files; return its id."""
        commit = self.repo.commit(
            {"train.py": f"# {idea}\n", "requirements.txt": LOCK, "README": "three\n"}, idea
        )
        run = new_ulid()
        tree = self.repo.git("rev-parse", "HEAD^{tree}")
        _leave(self.directory(run))
        progress = self._progress(run, data)
        with self.ledger() as ledger, ledger.transaction() as tx:
            tx.append(
                opened(
                    run,
                    commit=commit,
                    tree=tree,
                    command=("python3", "train.py"),
                    idea=idea,
                    policy=PolicyFacts(digest="ab" * 32, values={"limits.deadline": 600}),
                    host=HostFacts(hostname="box", architecture="x86_64", cpus=2),
                    protection="same-user",
                    tier="container",
                    version="0.1.0",
                )
            )
            tx.append(Pin(run=run, ref=f"refs/sealrun/runs/{run}", commit=commit))
            tx.append(progress)
            tx.append(_alert(run, self.directory(run)))
            tx.append(_end(run, **end))
        self.repo.git("update-ref", f"refs/sealrun/runs/{run}", commit)
        return run

    def layer(self, content: bytes) -> Layer:
        """Put a layer into the store."""
        with LayerStore(self.places.layers).writer(durable=False) as writer:
            writer.write(content)
            return writer.commit()

    def _progress(self, run: str, data: tuple[DataFacts, ...]) -> RunProgress:
        base = Base("recipe:none", Platform(), (self.layer(BASE),), None, None, None)
        variables = {"VIRTUAL_ENV": "/opt/env"}
        environment = Environment("key", "requirements.txt", self.layer(WHEELS), variables)
        trees = TreeLayers(self.places.trees(self.id))
        image = seal(self.repo.tree(), base, environment, trees).image
        roles = ("base", "environment", "tree")
        return RunProgress(
            run=run,
            step="sealed",
            image_id=image.image_id,
            base=base.origin,
            environment=environment.key,
            environment_source=environment.source,
            layers=tuple(
                LayerFacts(role=role, diff_id=layer.diff_id, size=layer.size)
                for role, layer in zip(roles, image.layers, strict=True)
            ),
            loading=LoadingFacts(
                way="hybrid", sent=30, manifest_digest=stack(image).manifest_digest
            ),
            init="6" * 64,
            engine=EngineFacts(name="docker", version="20.10.24"),
            data=data
            or (DataFacts(source="/data", target="/data", digest="7" * 64, files=3, hashed=3),),
            variables={**variables, "HOME": "/home/run", "TOKEN": "never in a statement"},
        )


def _leave(directory: Path) -> None:
    files = {
        b"log": LOG,
        b"outputs/out/model.bin": MODEL,
        b"outputs/workdir/notes.txt": NOTES,
        b"outputs/out/" + ODD: b"odd",
        b"evidence/" + sha256(FOREIGN).encode(): FOREIGN,
    }
    for name, content in files.items():
        place = directory / name.decode("utf-8", "surrogateescape")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def _alert(run: str, directory: Path) -> Any:  # noqa: ANN401 - an event
    digest = sha256(FOREIGN)
    kept = str(directory / "evidence" / digest)
    state = ForeignState(path="train.py", change="modified", sha256=digest, evidence=kept)
    return alert(run, detail="a\x1b[2J b\udcff", states=(state,))


def _end(run: str, **fields: Any) -> Any:  # noqa: ANN401 - an event
    values: dict[str, Any] = {
        "verdict": Judgement(
            kind="flagged", reasons=(Because(code="edit-unattributed", detail="train.py"),)
        ),
        "metric": MetricFacts(name="val_bpb", value=0.9979, direction="minimize"),
        "coverage": Coverage(complete=True, verified=("3 files",), observed=("1 directory",)),
        "seconds": 1.5,
        "limits": {"deadline": 600, "memory": None},
        "devices": ("0",),
        "outputs": (
            OutputFile(path="out/model.bin", size=len(MODEL), sha256=sha256(MODEL)),
            OutputFile(path="workdir/notes.txt", size=len(NOTES), sha256=sha256(NOTES)),
        ),
    }
    return ended(run, **(values | fields))
