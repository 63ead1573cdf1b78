"""The envelope around a statement: DSSE, signed with ed25519.

Rules that this module keeps:

- What is signed is DSSE's pre-authentication encoding of type and payload (DSSE 1.0, protocol.md);
  making and checking it is securesystemslib's work.
- A statement is used only as the bytes whose signature held; nothing is parsed twice.
- An envelope that was read is hostile until then: bounded, and refused with the reason.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from sealrun.ledger.codec import Misfit, load
from sealrun.provenance.faults import BadEnvelope
from sealrun.provenance.keys import verifier
from sealrun.provenance.statement import EXTENSION, FORMAT, PREDICATE_TYPE, STATEMENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from securesystemslib.dsse import Envelope as Dsse
    from securesystemslib.signer import Signer

    from sealrun.ledger.codec import Json
    from sealrun.provenance.keys import PublicKey

#: in-toto's media type of a statement (spec/v1/envelope.md).
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
#: Bytes of an envelope, at most; those of our runs have some ten thousand.
LARGEST: Final = 16 << 20
#: Signatures that are looked at.
_SIGNATURES = 16


@dataclass(frozen=True)
class Statement:
    """A statement as it was signed.

    Attributes:
        payload: the signed bytes.
        document: what they say.
        key: the key whose signature held.
    """

    payload: bytes
    document: dict[str, Json]
    key: PublicKey

    @property
    def run(self) -> dict[str, Any]:
        """Our extension."""
        return cast("dict[str, Any]", cast("Any", self.document)["predicate"][EXTENSION])


def seal(payload: bytes, signer: Signer) -> bytes:
    """Return the envelope of a statement, as JSON."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), sort_keys=True).encode("ascii") + b"\n"


def read(file: Path) -> bytes:
    """Return an envelope's file.

    Raises:
        BadEnvelope: it cannot be read, is no regular file, or far too large.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadEnvelope(f"{file} cannot be read: {error.strerror}") from error
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadEnvelope(f"{file} is no regular file")
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise BadEnvelope(f"{file} is larger than any envelope ({LARGEST} bytes)")
    return content


def signers(content: bytes) -> tuple[str, ...]:
    """Return the ids of the keys that an envelope claims to be signed by; nothing is checked.

    Raises:
        BadEnvelope: it is no envelope.
    """
    return tuple(_parse(content).signatures)


def opened(content: bytes, keys: Sequence[PublicKey]) -> Statement:
    """Check an envelope's signature and return what it holds.

    Args:
        content: the envelope, as JSON.
        keys: any of which may have signed.

    Raises:
        BadEnvelope: it is no envelope, was signed by none of these keys, or holds no statement.
    """
    from securesystemslib.exceptions import VerificationError

    envelope = _parse(content)
    if envelope.payload_type != PAYLOAD_TYPE:
        raise BadEnvelope(f"the envelope holds {envelope.payload_type[:100]!r}, no statement")
    claimed = tuple(envelope.signatures)
    fitting = [key for key in keys if key.id in claimed]
    if not fitting:
        names = ", ".join(name[:64] for name in claimed) or "nobody"
        raise BadEnvelope(
            f"the statement was signed by a key that is not known here: {names}",
            hint="Get its maker's public key from the maker and import it (sealrun key import), or "
            "name it with --key.",
        )
    for key in fitting:
        try:
            envelope.verify([verifier(key)], 1)
        except VerificationError:
            continue
        return Statement(envelope.payload, _statement(envelope.payload), key)
    raise BadEnvelope(
        f"the signature does not hold: the statement was changed, or was not signed by the key "
        f"{fitting[0].id[:16]} ({fitting[0].name})"
    )


def _parse(content: bytes) -> Dsse:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import FormatError

    try:
        fields: Any = load(content.decode("utf-8"))
        envelope = Envelope.from_dict(fields)
    except (Misfit, ValueError, KeyError, TypeError, AttributeError, FormatError) as error:
        raise BadEnvelope(
            f"this is no envelope with a statement: {type(error).__name__}"
        ) from error
    texts: list[object] = [envelope.payload_type, *envelope.signatures]
    if len(texts) > _SIGNATURES or not all(isinstance(text, str) for text in texts):
        raise BadEnvelope("this is no envelope with a statement: it is malformed")
    return envelope


def _statement(payload: bytes) -> dict[str, Json]:
    """Return a signed payload's document, when it is a statement of ours."""
    try:
        document = load(payload.decode("utf-8"))
        kinds = document["_type"], document["predicateType"]
        extension = cast("Any", document)["predicate"][EXTENSION]
        version, ledger = extension["format"], extension["ledger"]
        _ = [extension["run"] + "", ledger["head"] + "", ledger["digest"] + "", extension["late"]]
        subjects = cast("Any", document)["subject"]
        _ = [(one["name"] + "", one["digest"]["sha256"] + "") for one in subjects]
        if type(ledger["seq"]) is not int:
            raise BadEnvelope("the statement does not say where the ledger stood")
    except (Misfit, ValueError, KeyError, TypeError) as error:
        raise BadEnvelope("what was signed is no statement about a run") from error
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise BadEnvelope(f"what was signed is no SLSA provenance: {str(kinds)[:200]}")
    if version != FORMAT:
        raise BadEnvelope(
            f"the statement is of format {str(version)[:20]}, this sealrun knows {FORMAT}",
            hint="Check it with the newer sealrun that made it.",
        )
    return document
