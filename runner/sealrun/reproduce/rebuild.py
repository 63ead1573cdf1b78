"""From a run's record to its image: the same id, from what is stored, without a network.

Rules that this module keeps:

- Layers are found by the digests on record, never by what a policy, a recipe or a mirror would give
  today.
- The image is what hashes to the recorded id; anything else is an error, never a substitute.
- Nothing is made or fetched: what is missing is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.data import HashCache
from sealrun.errors import EnvironmentFault, Refused, SealrunError, StorageFault, UsageError
from sealrun.git import RUN_REFS
from sealrun.image.model import Base, Environment, Layer, Platform
from sealrun.image.store import LayerStore, Records
from sealrun.policy import approved_policy
from sealrun.progress import Silent
from sealrun.sandbox.init import ARCHITECTURES
from sealrun.state import private
from sealrun.tree import Spool, read_commit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sealrun.data import Dataset
    from sealrun.git import Repository
    from sealrun.image.seal import Sealed
    from sealrun.ledger import LayerFacts, RunRecord
    from sealrun.policy import EffectivePolicy
    from sealrun.progress import Progress
    from sealrun.state import Places
    from sealrun.tree import CommittedTree


@dataclass(frozen=True)
class Stored:
    """Where what a run is made of is kept.

    Attributes:
        repository: the git repository.
        repository_id: its id in our places.
        places: of the calling user.
    """

    repository: Repository
    repository_id: str
    places: Places

    @property
    def layers(self) -> LayerStore:
        """The content-addressed layers."""
        return LayerStore(self.places.layers)

    def directory(self, run: str) -> Path:
        """Return where a run's log and outputs are: its own place, or that of imported runs."""
        imported = self._imported(run)
        return imported if imported.is_dir() else self.places.run(self.repository_id, run)

    def is_imported(self, run: str) -> bool:
        """Tell whether a run's record came in a bundle."""
        return self._imported(run).is_dir()

    def _imported(self, run: str) -> Path:
        return self.places.imported(self.repository_id) / "runs" / run


def require_image(record: RunRecord) -> str:
    """Return the id of a run's image.

    Raises:
        UsageError: the run never came so far.
    """
    if record.progress.image_id is None or not record.progress.layers:
        raise UsageError(
            f"run {record.run} has no image to run again: it ended {record.outcome} before it "
            "was sealed",
            hint="sealrun show with its id says why.",
        )
    return record.progress.image_id


def tree_of(record: RunRecord, stored: Stored) -> CommittedTree:
    """Return the committed tree of a run, re-hashed.

    Raises:
        ObjectCorrupt: one of its objects is missing or damaged.
    """
    spool = Spool(stored.places.spool(stored.repository_id), stored.repository.algorithm)
    return read_commit(stored.repository, record.commit, spool)


def rebuild(
    record: RunRecord, tree: CommittedTree, stored: Stored, progress: Progress | None = None
) -> Sealed:
    """Assemble a run's image from its tree and the layers on record.

    The files of base and environment are not read here: whoever loads them hashes them.

    Raises:
        UsageError: the run has no image.
        SealRefused: the tree cannot be sealed any more.
        EnvironmentFault: what is assembled has another id than the record says.
    """
    from sealrun.image.seal import seal
    from sealrun.image.tree_layer import TreeLayers

    wanted = require_image(record)
    trees = TreeLayers(stored.places.trees(stored.repository_id))
    parts = record.progress.layers or ()
    base = _base(record, stored.layers)
    middle = [_layer(part, stored.layers) for part in parts if part.role == "environment"]
    found = None
    for environment in _environments(record, middle[0] if middle else None, stored):
        found = seal(tree, base, environment, trees, progress)
        if found.image.image_id == wanted:
            return found
    assembled = found.image.image_id if found else "nothing"
    raise EnvironmentFault(
        f"the image of run {record.run} has the id {wanted}, what is stored gives {assembled}",
        hint="The record of its environment is gone or was replaced; sealrun doctor "
        "--reproducible says what is missing.",
    )


def _base(record: RunRecord, layers: LayerStore) -> Base:
    host = record.opened.host
    machine = (host.architecture if host else None) or ""
    return Base(
        origin=record.progress.base or "unknown",
        platform=Platform(architecture=ARCHITECTURES.get(machine, machine)),
        layers=tuple(
            _layer(part, layers) for part in record.progress.layers or () if part.role == "base"
        ),
        python=None,
        python_path=None,
        libc=None,
        packages=(),
    )


def _layer(part: LayerFacts, layers: LayerStore) -> Layer:
    return Layer(part.diff_id, part.size or 0, layers.path(part.diff_id))


def _environments(record: RunRecord, layer: Layer | None, stored: Stored) -> Iterator[Environment]:
    """Yield what the environment may have been; the image's id decides which it was."""
    key = record.progress.environment or ""
    kept = Records(stored.places.bases, stored.layers).environment(key)
    if kept is not None:
        same = (kept.layer.diff_id if kept.layer else None) == (layer.diff_id if layer else None)
        if same:
            yield kept
    source = record.progress.environment_source
    # Its variables are those that it put into every container: among the run's own.
    variables = record.progress.variables or {}
    active = {
        name: value
        for name, value in variables.items()
        if name == "VIRTUAL_ENV" or name.startswith("UV_")
    }
    yield Environment(key, source, layer, active)
    yield Environment(key, source, layer)


def missing_layers(
    record: RunRecord, stored: Stored, *, hashed: set[str] | None = None
) -> list[str]:
    """Return each layer of base and environment that is not stored whole, as a clause.

    Args:
        record: of the run.
        stored: where to look.
        hashed: digests that are known to be whole; with it layers are read, not only looked for,
            and what proves whole is added.
    """
    found: list[str] = []
    for part in record.progress.layers or ():
        if part.role == "tree":
            continue
        layer = stored.layers.get(part.diff_id, part.size or 0)
        if layer is None:
            found.append(f"the {part.role} layer {part.diff_id} is not stored whole")
        elif hashed is not None and part.diff_id not in hashed:
            try:
                stored.layers.verify(layer)
                hashed.add(part.diff_id)
            except StorageFault as damage:
                found.append(f"the {part.role} layer: {damage.message}")
    return found


def policy_of(record: RunRecord) -> EffectivePolicy:
    """Return the policy that a run had, from its record; nothing of it is taken from a caller.

    Raises:
        UsageError: the record holds none.
        PolicyError: this version cannot read it.
    """
    recorded = record.opened.policy
    if recorded is None:
        raise UsageError(f"the record of run {record.run} holds no policy")
    values = dict(recorded.values)
    if "sandbox.pass_variables" in values:
        # What the caller had then is on record; what a caller has now is not asked for.
        values["sandbox.pass_variables"] = []
    return approved_policy(recorded.digest, values)


def data_of(
    record: RunRecord, stored: Stored, home: Path, progress: Progress | None = None
) -> tuple[Dataset, ...]:
    """Return a run's data as it stands now, which is what it was then.

    Raises:
        Refused: data is gone, or is not what the run read.
    """
    from sealrun.fetch.prepare import again as fetched_again

    policy = policy_of(record).policy
    cache = HashCache(private(stored.places.cache) / "hashes.sqlite")
    listener = progress or Silent()
    now = cache.manifest(policy.data, home, listener)
    then = {facts.target: facts for facts in record.progress.data or ()}
    # What stands beside the policy's data was fetched: it is found by its digest alone.
    beside = then.keys() - {dataset.target for dataset in now}
    now += tuple(
        fetched_again(target, then[target].digest, stored.places, listener)
        for target in sorted(beside)
    )
    for dataset in now:
        known = then.get(dataset.target)
        if known is None or known.digest == dataset.digest:
            continue
        raise Refused(
            f"run {record.run} read other data: {dataset.source} held {known.files} files "
            f"({known.digest[:12]}), it holds {len(dataset.files)} ({dataset.digest[:12]})",
            hint="Bring back the data that the run read; nothing else reproduces it.",
        )
    return now


def missing(record: RunRecord, stored: Stored, home: Path, hashed: set[str]) -> tuple[str, ...]:
    """Return what keeps a run from being rebuilt today, as a clause each; empty: nothing does.

    Args:
        record: of the run.
        stored: where everything is kept.
        home: of the calling user, for the paths of data.
        hashed: digests of layers that are known to be whole; more are added.
    """
    require_image(record)
    found = missing_layers(record, stored, hashed=hashed)
    if record.run not in stored.repository.pinned():
        found.append(f"its commit is not pinned: {RUN_REFS}{record.run} is gone")
    try:
        rebuild(record, tree_of(record, stored), stored)
    except SealrunError as error:
        found.append(error.message)
    try:
        data_of(record, stored, home)
    except SealrunError as error:
        found.append(error.message)
    return tuple(found)
