"""Which images of ours an engine can do without: every one that no container uses.

Rules that this module keeps:

- Ours is what a run on record, a record of a base or environment, or a ``warm`` of this user gave
  its name; whatever else an engine holds is somebody else's, also where it is called alike.
- An image goes by its name, never by force: an engine that still needs it says no, and it stays.
- What stands below an image that stays, stays: removing it frees nothing and costs a load.
- An engine's copy is made again from stored layers, without network; that is why it may go at all.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sealrun.errors import StorageFault
from sealrun.gc.model import Finding, Kind, Left
from sealrun.image.archive import lower_references, stack, tree_reference
from sealrun.image.load import EngineImages, engine_errors
from sealrun.image.model import Environment, Layer
from sealrun.image.seal import assemble
from sealrun.image.store import LayerStore, Records, sha256, write_atomically
from sealrun.image.tar import END
from sealrun.ledger import utc
from sealrun.progress import Silent
from sealrun.state import private

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sealrun.gc.needed import Needed
    from sealrun.image.model import Base, SealedImage
    from sealrun.state import Places

_NAME = re.compile(r"(?:[^/]+/)*(sealrun-(?:tree|env|base):[0-9a-f]{12,64})")
#: Trees first: what stands below them goes only with the last of them.
_ORDER = ("sealrun-tree", "sealrun-env", "sealrun-base")
_NOTES = "warmed"


def note_warmed(image: SealedImage, places: Places) -> None:
    """Note that an image is in an engine because of us: no run on record names it yet.

    Raises:
        StorageFault: the note cannot be written.
    """
    middle = image.environment.layer
    names = [
        tree_reference(image.image_id),
        *lower_references(
            [layer.diff_id for layer in image.base.layers],
            middle.diff_id if middle else None,
            image.base.platform,
        ),
    ]
    file = private(places.data / _NOTES) / f"{image.image_id.removeprefix('sha256:')}.json"
    write_atomically(file, json.dumps({"images": names, "at": utc()}).encode(), durable=False)


class EngineSearch:
    """Looks for our images in one engine.

    Args:
        client: docker-py's low-level client.
    """

    def __init__(self, client: Any) -> None:  # noqa: ANN401 - docker-py ships no types
        self._client = client
        self._images = EngineImages(client, Silent())

    def search(
        self, places: Places, needed: Needed, recent: float
    ) -> tuple[list[Finding], list[Left]]:
        """Return images that can go, in the order of removal, and what stays although it is ours.

        Args:
            places: of the user.
            needed: what runs on record called their images.
            recent: seconds after its last use that an image stays.

        Raises:
            EngineError: the engine does not answer.
        """
        ours = {**warmed(places), **needed.images}
        ours |= {name: ours.get(name, "") for name in recorded(places)}
        with engine_errors("listing images"):
            listed: list[dict[str, Any]] = self._client.images(all=False)
            containers: list[dict[str, Any]] = self._client.containers(all=True)
        used = {str(one.get("ImageID")) for one in containers}
        since = utc(datetime.now(UTC) - timedelta(seconds=recent))
        stacks: dict[str, tuple[str, ...]] = {}
        staying: set[str] = set()
        left: list[Left] = []
        for entry in listed:
            found = self._images.inspect(str(entry["Id"]))
            if found is None:
                continue
            names = {tag: match[1] for tag in found.tags if (match := _NAME.fullmatch(tag))}
            free = {tag for tag, name in names.items() if name in ours}
            if str(entry["Id"]) in used:
                left += [Left(tag, "a container uses it") for tag in sorted(free)]
                staying.update(found.layers)
                continue
            if len(free) < len(found.tags) or not free:
                staying.update(found.layers)
            if recent and any(ours[names[tag]] >= since for tag in free):
                left += [Left(tag, "it was used lately") for tag in sorted(free)]
                staying.update(found.layers)
                continue
            stacks |= dict.fromkeys(free, found.layers)
        return self._findings(stacks, staying, places), left

    def remove(self, reference: str) -> None:
        """Remove an image by its name; missing is fine.

        Raises:
            EngineError: the engine still needs it, or failed.
        """
        self._images.untag(reference)

    @staticmethod
    def _findings(
        stacks: dict[str, tuple[str, ...]], staying: set[str], places: Places
    ) -> list[Finding]:
        found: list[Finding] = []
        counted: set[str] = set()
        for tag in sorted(stacks, key=_order):
            layers = stacks[tag]
            if set(layers) <= staying:
                continue
            size = 0
            for diff_id in layers:
                # A layer goes with the last image that holds it.
                later = any(diff_id in s for t, s in stacks.items() if _order(t) > _order(tag))
                if diff_id not in staying and diff_id not in counted and not later:
                    counted.add(diff_id)
                    size += _size(diff_id, places)
            why = "no container uses it; it is loaded again from stored layers, without network"
            found.append(Finding(Kind.IMAGE, tag, size, why))
        return found


def warmed(places: Places) -> dict[str, str]:
    """Return the images that ``warm`` loaded, with when it did last."""
    found: dict[str, str] = {}
    for file in sorted((places.data / _NOTES).glob("*.json")):
        try:
            document = json.loads(file.read_bytes())
            names, at = [str(name) for name in document["images"]], str(document["at"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found |= {name: max(at, found.get(name, "")) for name in names}
    return found


def recorded(places: Places) -> set[str]:
    """Return what images of the bases and environments on record are called: below, or to build."""
    records = Records(places.bases, LayerStore(places.layers))
    found: set[str] = set()
    for base in _bases(records):
        ids = [layer.diff_id for layer in base.layers]
        found.update(lower_references(ids, None, base.platform))
        empty = Layer(sha256(END), len(END), places.layers)
        found.add(stack(assemble(base, Environment("build", None, None), empty)).reference)
    return found


def _bases(records: Records) -> Iterable[Base]:
    for file in sorted(records.directory.glob("base-*.json")):
        try:
            key = json.loads(file.read_bytes())["key"]
            base = records.base(str(key))
        except (OSError, ValueError, KeyError, TypeError, StorageFault):
            continue
        if base is not None:
            yield base


def _order(tag: str) -> tuple[int, str]:
    name = tag.rpartition("/")[2].partition(":")[0]
    return _ORDER.index(name), tag


def _size(diff_id: str, places: Places) -> int:
    """Return a layer's bytes where we have it; a tree's, which we may not have, count for nothing."""
    store = LayerStore(places.layers)
    try:
        return store.size(diff_id) or 0
    except StorageFault:
        # Somebody else's idea of a digest.
        return 0
