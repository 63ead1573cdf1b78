"""A bucket as destination: objects named by their digests, and one head that is replaced.

Rules that this module keeps:

- The head is written last, and only if it still is the one that was read: a store that knows
  conditions (If-Match, If-None-Match) lets no two machines write one line. One that does not know
  them is written without.
- Credentials are found by the AWS client itself, in the caller's own variables, files and roles; none
  is read, kept or shown here, and no message of a store is repeated but for its code.
- The bucket is never made, and nothing outside the mirror's own prefix is listed, read or removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sealrun.mirror.config import MirrorError
from sealrun.mirror.format import HEAD_LIMIT, Damaged, is_line
from sealrun.mirror.line import TOP, Unreachable
from sealrun.mirror.packs import index_packs

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from sealrun.mirror.config import Bucket
    from sealrun.mirror.format import Blob
    from sealrun.mirror.line import Change, Piece

_HEAD = "head.json"
_PIECE = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"[A-Za-z0-9]{1,60}")
_TOGETHER = 1000
#: What stores answer where they do not know conditions on a write.
_UNKNOWN = {"NotImplemented", "501"}
#: What they answer where a condition did not hold.
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_MISSING = {"NoSuchKey", "404", "NotFound"}


@dataclass(frozen=True)
class Store:
    """A bucket with the client that speaks to it.

    Attributes:
        client: boto3's, which ships no types.
        place: as it was configured.
    """

    client: Any
    place: Bucket

    def key(self, *parts: str) -> str:
        """Return the key of an object of the mirror."""
        front = (self.place.prefix,) if self.place.prefix else ()
        return "/".join((*front, TOP, *parts))

    @contextlib.contextmanager
    def speaking(self) -> Generator[None]:
        """Turn what the client raises into ``Unreachable``.

        Raises:
            Unreachable: nobody answers, or the store does not do it.
        """
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        url = self.place.url
        try:
            yield
        except ClientError as error:
            code = code_of(error)
            raise Unreachable(f"{url}: the store answered {code}", hint=_hint(code)) from error
        except NoCredentialsError as error:
            raise Unreachable(
                f"{url}: there are no AWS credentials where sealrun was called",
                hint="Set them as for the aws command: variables, ~/.aws, or a role.",
            ) from error
        except (BotoCoreError, ResponseParserError, HTTPError) as error:
            # Its text may hold a URL with a signature.
            raise Unreachable(
                f"{url}: {type(error).__name__}", hint="Check the network, the endpoint and region."
            ) from error

    def names(self, folder: str) -> dict[str, int]:
        """Return the size of each object directly below a folder, by its name.

        Raises:
            Unreachable: it cannot be listed.
        """
        front = f"{self.key(folder)}/"
        return {
            one["Key"].removeprefix(front): int(one["Size"])
            for page in self._pages(front)
            for one in page.get("Contents", ())
        }

    def folders(self, *parts: str) -> list[str]:
        """Return the names of the folders directly below one.

        Raises:
            Unreachable: it cannot be listed.
        """
        front = f"{self.key(*parts)}/"
        return [
            one["Prefix"].removeprefix(front).rstrip("/")
            for page in self._pages(front)
            for one in page.get("CommonPrefixes", ())
        ]

    def _pages(self, front: str) -> Iterator[dict[str, Any]]:
        with self.speaking():
            pages = self.client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self.place.bucket, Prefix=front, Delimiter="/")


def connect(place: Bucket) -> Store:
    """Return a bucket with a client; nothing is asked yet.

    Raises:
        MirrorError: the client is not installed, or the user's AWS configuration is wrong.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise MirrorError(
            f"{place.url}: the AWS client is not installed",
            hint="pip install 'sealrun[s3]' where sealrun is installed.",
        ) from error
    settings = Config(
        connect_timeout=min(20.0, place.timeout),
        read_timeout=place.timeout,
        retries={"mode": "standard", "total_max_attempts": 3},
        # Other stores than Amazon's do not all know its newer checksums; we have our own.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # A store of one's own has seldom a name for each bucket.
        s3={"addressing_style": "path" if place.endpoint else "auto"},
    )
    try:
        session = boto3.Session(profile_name=place.profile, region_name=place.region)
        # Signing needs the name of a region also where the store has none.
        region = None if session.region_name else "us-east-1"
        client = session.client(
            "s3", endpoint_url=place.endpoint, config=settings, region_name=region
        )
    except (BotoCoreError, ValueError) as error:
        raise MirrorError(
            f"{place.url}: the AWS configuration cannot be used: {type(error).__name__}",
            hint="aws configure list shows what the client finds.",
        ) from error
    return Store(client, place)


class S3Line:
    """One line in a bucket.

    Args:
        store: that it stands in.
        name: of the line.
    """

    carries_commits = False

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self._tag: str | None = None

    def head(self) -> bytes | None:
        """Return the bytes of the head; None where there is none."""
        found = self._get(self.store.key(self.name, _HEAD), HEAD_LIMIT + 1)
        self._tag = None if found is None else found[1]
        return None if found is None else found[0]

    def piece(self, folder: str, digest: str, limit: int) -> bytes:
        """Return a piece as it is stored."""
        found = self._get(self.store.key(self.name, folder, digest), limit + 1)
        if found is None:
            raise Damaged(f"{folder}/{digest[:12]} is missing in {self.store.place.url}")
        if len(found[0]) > limit:
            raise Damaged(f"{folder}/{digest[:12]} is larger than {limit} bytes")
        return found[0]

    def close(self) -> None:
        """Do nothing: the client keeps connections, and ends with its process."""

    def unpack(self, repository: Path, packs: Sequence[tuple[int, Blob]]) -> None:
        """Bring the packs of segments into a bare repository of ours."""
        index_packs(self, repository, packs)

    def write(self, change: Change) -> None:
        """Write the pieces, then the head, then remove what it does not name any more."""
        there = {folder: self.store.names(f"{self.name}/{folder}") for folder in change.keep}
        for piece in change.pieces:
            if there.get(piece.folder, {}).get(piece.digest) != piece.size:
                self._put(piece)
        self._put_head(change.head)
        for folder, names in there.items():
            kept = change.keep[folder]
            self._remove(folder, [n for n in names if _PIECE.fullmatch(n) and n not in kept])

    def _get(self, key: str, limit: int) -> tuple[bytes, str] | None:
        """Return at most so many bytes of an object, with its tag; None where there is none."""
        from botocore.exceptions import ClientError

        store = self.store
        with store.speaking():
            try:
                answer = store.client.get_object(Bucket=store.place.bucket, Key=key)
            except ClientError as error:
                if code_of(error) in _MISSING:
                    return None
                raise
            with contextlib.closing(answer["Body"]) as body:
                return body.read(limit), str(answer.get("ETag", ""))

    def _put(self, piece: Piece) -> None:
        content = piece.load()
        if hashlib.sha256(content).hexdigest() != piece.digest:
            raise Unreachable(f"a file of {piece.folder} changed while it was mirrored")
        store = self.store
        with store.speaking():
            key = store.key(self.name, piece.folder, piece.digest)
            store.client.put_object(Bucket=store.place.bucket, Key=key, Body=content)

    def _put_head(self, content: bytes) -> None:
        from botocore.exceptions import ClientError

        store = self.store
        asked = {
            "Bucket": store.place.bucket,
            "Key": store.key(self.name, _HEAD),
            "Body": content,
        }
        condition = {"IfMatch": self._tag} if self._tag else {"IfNoneMatch": "*"}
        with store.speaking():
            try:
                answer = store.client.put_object(**asked, **condition)
            except ClientError as error:
                if code_of(error) in _CHANGED:
                    # The client asks again where an answer was lost; then the first was heard.
                    tag = self._tag
                    if self.head() == content:
                        return
                    self._tag = tag
                    raise Unreachable(
                        f"{store.place.url}: somebody else wrote this line meanwhile",
                        hint="Two copies of this machine's state may be at work: "
                        "sealrun mirror status shows how they differ.",
                    ) from error
                if code_of(error) not in _UNKNOWN:
                    raise
                answer = store.client.put_object(**asked)
        self._tag = str(answer.get("ETag", "")) or None

    def _remove(self, folder: str, names: Sequence[str]) -> None:
        store = self.store
        for start in range(0, len(names), _TOGETHER):
            keys = [
                {"Key": store.key(self.name, folder, n)} for n in names[start : start + _TOGETHER]
            ]
            # What stays is room that is lost, and removed the next time; a key may lack the right.
            with contextlib.suppress(Unreachable), store.speaking():
                store.client.delete_objects(
                    Bucket=store.place.bucket, Delete={"Objects": keys, "Quiet": True}
                )


def lines(store: Store) -> list[str]:
    """Return the names of the lines in a bucket.

    Raises:
        Unreachable: it cannot be listed.
    """
    found = [
        f"{repository}/{machine}"
        for repository in store.folders()
        for machine in store.folders(repository)
    ]
    return [name for name in found if is_line(name)]


def code_of(error: Any) -> str:  # noqa: ANN401 - botocore ships no types
    """Return a store's code for what it did not do; nothing else of its answer is believed."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if _CODE.fullmatch(code) else "an error"


def _hint(code: str) -> str:
    if code in ("NoSuchBucket", "404"):
        return "Make the bucket; sealrun never does."
    if code in (
        "AccessDenied",
        "403",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
    ):
        return "The credentials need to list, read, write and remove objects below the prefix."
    return "Check the bucket, the endpoint and the region."
