"""The key that signs the caller's runs, and the public keys that others' runs are checked with.

Rules that this module keeps:

- One private key of ed25519, PKCS#8 in PEM (RFC 5958, RFC 8410), readable by its owner alone; it is
  never printed, logged or copied anywhere else. A key, or a directory of keys, that anybody else
  can read or write is not used.
- Nothing is overwritten: a second key needs the first one to be moved away by a human.
- A public key of others counts only once its owner was told to trust it: a key that came along with
  what it signs proves nothing.
- A key on the machine that it vouches for does not protect from that machine's owner.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.errors import UsageError
from sealrun.provenance.faults import KeyFault

if TYPE_CHECKING:
    from pathlib import Path

    from securesystemslib.signer import CryptoSigner, SSlibKey

    from sealrun.state import Places

_PRIVATE = "signing.pem"
_TRUSTED = "trusted"
#: Bytes of a key's file, at most.
_LARGEST = 16 << 10
_OTHERS = 0o077


@dataclass(frozen=True)
class PublicKey:
    """A public key.

    Attributes:
        id: securesystemslib's: sha256 over the key's canonical JSON.
        name: what its owner is called here; ``own`` for the caller's.
        pem: SubjectPublicKeyInfo (RFC 5280, 8410), as ``openssl`` reads it.
    """

    id: str
    name: str
    pem: str


class Keys:
    """The keys of one user, in one private directory.

    Args:
        directory: ``Places.keys``.
    """

    OWN = "own"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def of(cls, places: Places) -> Keys:
        """Return the keys below the caller's places."""
        return cls(places.keys)

    @property
    def private(self) -> Path:
        """Where the private key stands, or would stand."""
        return self.directory / _PRIVATE

    @property
    def exists(self) -> bool:
        """Whether there is a private key, usable or not; imports nothing."""
        return os.path.lexists(self.private)

    def create(self) -> PublicKey:
        """Make a key.

        Raises:
            UsageError: there is one already.
            KeyFault: it cannot be written.
        """
        from securesystemslib.signer import CryptoSigner

        return self._put(CryptoSigner.generate_ed25519())

    def signer(self) -> CryptoSigner:
        """Return what signs.

        Raises:
            KeyFault: there is no key, it is no ed25519 key, or others can read or write it.
        """
        self._check_directory()
        return _signer(_read_private(self.private), str(self.private))

    def own(self) -> PublicKey:
        """Return the public half of the caller's key.

        Raises:
            KeyFault: as ``signer``.
        """
        return _public(self.signer().public_key, self.OWN)

    def all(self) -> list[PublicKey]:
        """Return the caller's own key, if there is one, and every trusted one by name.

        Raises:
            KeyFault: one cannot be used.
        """
        self._check_directory()
        found = [self.own()] if self.exists else []
        folder = self.directory / _TRUSTED
        files = sorted(folder.glob("*.pem")) if folder.is_dir() else []
        return found + [read_public(file) for file in files]

    def take(self, file: Path, name: str | None = None) -> PublicKey:
        """Import a key: a private one becomes the caller's own, a public one is trusted.

        Args:
            file: PEM, of a private or a public ed25519 key.
            name: of the public key's owner; the file's name without it.

        Raises:
            UsageError: it holds no such key, or the name is taken or no name.
            KeyFault: it cannot be read or written.
        """
        content = _read(file)
        if b"PRIVATE KEY" in content:
            return self._put(_signer(_read_private(file), str(file)))
        name = name or file.stem
        if not name.replace("-", "").replace("_", "").isalnum() or name == self.OWN:
            raise UsageError(
                f"{name!r} is no name for a key", hint="Give --name letters, digits, - and _."
            )
        key = _parse_public(content, name, str(file))
        self._check_directory()
        folder = self.directory / _TRUSTED
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise KeyFault(f"cannot make {folder}: {error.strerror}") from error
        _write_new(folder / f"{name}.pem", key.pem.encode())
        return key

    def _put(self, signer: CryptoSigner) -> PublicKey:
        self._check_directory()
        _write_new(self.private, signer.private_bytes)
        return _public(signer.public_key, self.OWN)

    def _check_directory(self) -> None:
        try:
            status = self.directory.stat(follow_symlinks=False)
        except OSError as error:
            raise KeyFault(f"cannot read {self.directory}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise KeyFault(f"{self.directory} is no directory")
        _check_private(self.directory, status)


def read_public(file: Path, name: str | None = None) -> PublicKey:
    """Read a public key from a PEM file.

    Raises:
        UsageError: it holds none of ed25519.
        KeyFault: it cannot be read.
    """
    return _parse_public(_read(file), name or file.stem, str(file))


def verifier(key: PublicKey) -> SSlibKey:
    """Return a key as securesystemslib checks signatures with it."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    return SSlibKey.from_crypto(load_pem_public_key(key.pem.encode()))


def _parse_public(content: bytes, name: str, where: str) -> PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        found = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(where) from error
    if not isinstance(found, Ed25519PublicKey):
        raise _no_key(where)
    return _public(SSlibKey.from_crypto(found), name)


def _public(key: SSlibKey, name: str) -> PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    # SSlibKey keeps ed25519 keys as raw hexadecimal digits; PEM is what openssl reads.
    raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    pem = raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(key.keyid, name, pem.decode("ascii"))


def _signer(content: bytes, where: str) -> CryptoSigner:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        found = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Its words may hold parts of the key: they are dropped, cause and all.
        raise _no_key(where) from None
    if not isinstance(found, Ed25519PrivateKey):
        raise _no_key(where)
    return CryptoSigner(found)


def _no_key(where: str) -> UsageError:
    return UsageError(
        f"{where} holds no ed25519 key in PEM without a passphrase",
        hint="sealrun key create makes a key; sealrun key show prints its public half.",
    )


def _read(file: Path, *, follow: bool = True) -> bytes:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        handle = os.open(file, flags)
    except OSError as error:
        raise KeyFault(
            f"the key {file} cannot be read: {error.strerror}",
            hint="sealrun key create makes a key; sealrun key list shows what there is.",
        ) from error
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise KeyFault(f"the key {file} is no regular file")
        if not follow:
            _check_private(file, os.fstat(handle))
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise _no_key(str(file))
    return content


def _read_private(file: Path) -> bytes:
    return _read(file, follow=False)


def _check_private(place: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise KeyFault(f"{place} belongs to another user", hint="Make a key of your own.")
    if status.st_mode & _OTHERS:
        raise KeyFault(
            f"others can read or write {place} (mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"If nobody has copied the key: chmod go= {place}. Else make a new one.",
        )


def _write_new(file: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(file, flags, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(handle)
    except FileExistsError as error:
        raise UsageError(
            f"there is a key already: {file}",
            hint="What it signed can be checked with it alone; keep its public half when it is "
            "replaced.",
        ) from error
    except OSError as error:
        raise KeyFault(f"cannot write {file}: {error.strerror}") from error
