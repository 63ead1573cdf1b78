"""Brings a sealed image into an engine, and believes only what the engine then shows.

Rules that this module keeps:

- An image that the engine has is not sent again; a layer that it has is not sent again. Base and
  environment are loaded once, as tagged images of their own.
- The engine's answer is read to its end: HTTP 200 and "Loaded image" also come with a broken image
  (containerd stores), and only a line of the stream tells.
- Afterwards the engine's id and layer list are compared with what we computed. On any difference
  the tag is removed and everything is sent; if that differs too, it is an error.
- A layer of ours that is damaged is a ``StorageFault`` with its path, never a half-loaded image.
- A classic store writes the whole archive to its disk before it unpacks a layer of it. It is sent
  layers as we store them, compressed: else it would need the room of two copies.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sealrun.errors import EngineError, ImageGone
from sealrun.image.archive import Archive, Stack, foundations, stack
from sealrun.image.model import Loading
from sealrun.image.store import is_packed
from sealrun.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from docker import APIClient

    from sealrun.image.model import Layer, SealedImage
    from sealrun.progress import Progress
    from sealrun.sandbox.protocol import Container, Request, Sandbox

#: Seconds without a byte from the engine: it may unpack gigabytes before it says another word.
_PATIENCE = 1800
#: Characters of an engine's words that we pass on.
_WORDS = 2000
_NOT_FOUND = 404
#: What an engine says in the stream of a load that it counts as done (containerd stores).
_BROKEN = ("error unpacking", "failed to unpack", "failed to extract")


@dataclass(frozen=True)
class Found:
    """An image as an engine shows it."""

    id: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]


def load(
    image: SealedImage,
    client: APIClient,
    reference: str | None = None,
    progress: Progress | None = None,
) -> Loading:
    """Make an engine have an image; send only what it lacks.

    Args:
        image: what to load.
        client: of the engine, docker-py's low-level one.
        reference: ``name:tag`` for the image; by default one that holds its id.
        progress: told of bytes while they are sent.

    Returns:
        How it came to be there, and what the engine calls it.

    Raises:
        EngineError: the engine failed, or shows another image than the one sent.
        StorageFault: a layer that has to be sent is missing or damaged.
    """
    engine = EngineImages(client, progress or Silent())
    wanted = stack(image, reference)
    found = engine.find(wanted)
    if found is not None:
        engine.tag(found, wanted.reference)
        return Loading("present", 0, found.id, wanted.manifest_digest)
    lower = foundations(image)
    there = next((n for n in range(len(lower), 0, -1) if engine.find(lower[n - 1])), 0)
    had = len(lower[there - 1].layers) if there else 0
    sent, why = 0, None
    for part in lower[there:]:
        _, more, failed = _bring(engine, part, had)
        sent, why, had = sent + more, why or failed, len(part.layers)
    loaded, more, failed = _bring(engine, wanted, had)
    why = why or failed
    way = "hybrid" if there and why is None else "full"
    return Loading(way, sent + more, loaded.id, wanted.manifest_digest, why)


def created(
    sandbox: Sandbox, request: Request, image: SealedImage, client: APIClient, progress: Progress
) -> Container:
    """Create a container of an image that was loaded; load it once more where it is gone.

    Whoever reloads a damaged layer removes every image that has it, those of others among them.

    Raises:
        SandboxError: the engine refused it, or the image is gone again.
        EngineError: the engine failed or went away.
        StorageFault: a layer that has to be sent is missing or damaged.
    """
    try:
        return sandbox.create(request)
    except ImageGone:
        load(image, client, progress=progress)
        return sandbox.create(request)


def reload(
    image: SealedImage,
    client: APIClient,
    reference: str | None = None,
    progress: Progress | None = None,
    *,
    tree_only: bool = False,
) -> Loading:
    """Remove an image with its foundations from an engine and load all of it again.

    A file that was changed in an engine's layer directory keeps the image's id, and loading over it
    repairs nothing, because the engine believes that it has the layer. Removing every image that
    uses the layer makes the engine unpack it anew. Images that are not ours stay; if one of them
    shares the damaged layer, so does the damage.

    Args:
        tree_only: the damage lies in the tree layer, which no other image has: base and environment
            stay, and with them what other runs use.

    Raises:
        EngineError: a container still uses one of the images, or the engine failed.
        StorageFault: a layer that has to be sent is missing or damaged.
    """
    engine = EngineImages(client, progress or Silent())
    wanted = stack(image, reference)
    if tree_only:
        engine.untag(wanted.reference)
    else:
        engine.forget(wanted)
    return load(image, client, reference, progress)


def _bring(engine: EngineImages, part: Stack, had: int) -> tuple[Found, int, str | None]:
    """Load one stack of which the engine has the lowest ``had`` layers.

    Returns:
        The image, bytes sent, and why everything was sent although layers were there, if so.
    """
    sent, why = 0, None
    if had:
        try:
            sent = engine.send(part, part.layers[had:])
            return engine.check(part), sent, None
        except EngineError as error:
            engine.untag(part.reference)
            why = error.message
    sent += engine.send(part, part.layers)
    return engine.check(part), sent, why


class EngineImages:
    """An engine's images, spoken to through docker-py's low-level client."""

    def __init__(self, client: APIClient, progress: Progress) -> None:
        self._client: Any = client
        self._progress = progress

    def find(self, wanted: Stack) -> Found | None:
        """Return a stack as the engine has it, if it has all of it under either of its names."""
        for name in (wanted.image_id, wanted.manifest_digest):
            found = self.inspect(name)
            if found is not None and found.layers == wanted.diff_ids:
                return found
        return None

    def inspect(self, name: str) -> Found | None:
        """Return the image that the engine knows by a name, or None."""
        import docker.errors

        with engine_errors(f"inspecting {name}"):
            try:
                answer: dict[str, Any] = self._client.inspect_image(name)
            except docker.errors.NotFound:
                return None
            except docker.errors.APIError as error:
                # Some engines answer 400 to a digest that they do not know.
                if error.status_code in (400, _NOT_FOUND):
                    return None
                raise
        layers = (answer.get("RootFS") or {}).get("Layers") or ()
        return Found(str(answer["Id"]), tuple(layers), tuple(answer.get("RepoTags") or ()))

    def check(self, wanted: Stack) -> Found:
        """Return what the engine now has under a stack's reference.

        Raises:
            EngineError: it is missing, or differs from what we computed.
        """
        found = self.inspect(wanted.reference)
        if found is None:
            raise EngineError(
                f"the engine loaded {wanted.reference} without complaint, but does not have it"
            )
        if found.id not in (wanted.image_id, wanted.manifest_digest):
            raise EngineError(
                f"the engine calls {wanted.reference} {found.id}; it has to be {wanted.image_id} "
                f"or, as a manifest, {wanted.manifest_digest}"
            )
        if found.layers != wanted.diff_ids:
            raise EngineError(
                f"the engine shows other layers for {wanted.reference} than were sent"
            )
        return found

    def tag(self, found: Found, reference: str) -> None:
        """Give an image a reference that it does not have yet."""
        if any(tag == reference or tag.endswith("/" + reference) for tag in found.tags):
            return
        name, _, tag = reference.rpartition(":")
        with engine_errors(f"tagging {reference}"):
            self._client.tag(found.id, name, tag)

    def untag(self, reference: str) -> None:
        """Remove a reference, and the image with it where it was the last; missing is fine."""
        import docker.errors

        with engine_errors(f"removing {reference}"):
            try:
                self._client.remove_image(reference)
            except docker.errors.NotFound:
                return

    def forget(self, wanted: Stack) -> None:
        """Remove every image of ours that shares a layer with a stack."""
        with engine_errors("listing images"):
            listed: list[dict[str, Any]] = self._client.images(all=False)
        for entry in listed:
            tags = [str(tag) for tag in entry.get("RepoTags") or ()]
            ours = [tag for tag in tags if tag.rpartition("/")[2].startswith("sealrun-")]
            if not ours or ours != tags:
                continue
            found = self.inspect(str(entry["Id"]))
            if found is not None and found.layers[:1] == wanted.diff_ids[:1]:
                for tag in ours:
                    self.untag(tag)
        self.untag(wanted.reference)

    def send(self, what: Stack, layers: Sequence[Layer]) -> int:
        """Send a stack with some of its layers; read all that the engine says about it.

        Returns:
            Bytes sent.

        Raises:
            EngineError: the engine reported an error, in its status or in the stream.
            StorageFault: a layer is missing or damaged.
        """
        archive = Archive(what, layers, as_stored=self._takes_packed(layers))
        title = f"loading {what.reference} into the engine"
        with (
            self._progress.task(title, len(archive)) as task,
            engine_errors(title),
        ):
            body = _Body(archive, task.advance)
            response = self._post(body)
            with response:
                _read(what.reference, response.iter_lines())
        return len(archive)

    def _takes_packed(self, layers: Sequence[Layer]) -> bool:
        """Tell whether the engine is known to unpack compressed layers of an archive."""
        if not any(is_packed(layer.path) for layer in layers):
            return False
        try:
            with engine_errors("asking the engine how it stores images"):
                version: dict[str, Any] = self._client.version()
                info: dict[str, Any] = self._client.info()
        except EngineError:
            # Then it gets what every engine takes.
            return False
        parts = {str(part.get("Name")) for part in version.get("Components") or ()}
        # A containerd store says so there, and keeps what it is sent.
        status = [str(pair) for pair in info.get("DriverStatus") or ()]
        return "Engine" in parts and not any("io.containerd" in words for words in status)

    def _post(self, body: _Body) -> Any:  # noqa: ANN401 - docker-py ships no types
        client = self._client
        # Not load_image: that one applies the client's timeout for short calls to a long one.
        response = client._post(  # noqa: SLF001 - docker-py's own way to make a request
            client._url("/images/load"),  # noqa: SLF001
            data=body,
            headers={"Content-Type": "application/x-tar"},
            params={"quiet": "0"},
            stream=True,
            timeout=_PATIENCE,
        )
        client._raise_for_status(response)  # noqa: SLF001
        return response


class _Body:
    """An archive as a request body: its length is known, and somebody counts along."""

    def __init__(self, archive: Archive, advance: Any) -> None:  # noqa: ANN401
        self._archive = archive
        self._advance = advance

    def __len__(self) -> int:
        return len(self._archive)

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._archive:
            yield piece
            self._advance(len(piece))


def _read(reference: str, lines: Iterator[bytes]) -> None:
    """Read an engine's answer to a load to its end.

    Raises:
        EngineError: one of its lines reports an error.
    """
    complaint: str | None = None
    for line in lines:
        complaint = complaint or _complaint(line)
    if complaint is not None:
        hint = None
        if "no space left" in complaint.lower():
            hint = "Free space where the engine keeps its images; sealrun gc removes unused ones."
        raise EngineError(f"the engine could not load {reference}: {complaint}", hint=hint)


def _complaint(line: bytes) -> str | None:
    """Return the error that a line of a load's stream reports, if it does."""
    text = line.decode("utf-8", "replace").strip()
    try:
        message: object = json.loads(text) if text else {}
    except ValueError:
        # Not the stream that the API promises: judged by its words alone.
        message = {"stream": text}
    if not isinstance(message, dict):
        return None
    detail = message.get("errorDetail")
    words = message.get("error") or (detail.get("message") if isinstance(detail, dict) else detail)
    if words or detail is not None:
        return str(words or text)[:_WORDS]
    said = f"{message.get('stream', '')} {message.get('status', '')}"
    return said.strip()[:_WORDS] if any(word in said.lower() for word in _BROKEN) else None


@contextmanager
def engine_errors(doing: str) -> Generator[None]:
    """Turn docker-py's and requests' exceptions into ours.

    Raises:
        EngineError: with the engine's words.
    """
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.APIError as error:
        words = str(error.explanation or error)[:_WORDS]
        raise EngineError(f"{doing}: the engine answered: {words}") from error
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise EngineError(
            f"{doing}: the engine went away: {error}",
            hint="sealrun engine status tells whether it runs.",
        ) from error
    except (KeyError, ValueError) as error:
        # docker-py lets these out when an answer is not what the API promises.
        raise EngineError(f"{doing}: the engine's answer makes no sense: {error!r}") from error
