"""Where the record is mirrored to: the user's own ``mirror.toml``.

Rules that this module keeps:

- The file is the user's, never the commit's: a commit must not choose who gets the record.
- A secret is a value in the file, a private file of its own (``…_file``) or a variable of the
  environment (``…_env``); it goes to git through the environment of its process, never through its
  command line, and no message repeats it.
- What opens a bucket is in the caller's own AWS configuration and nowhere here.
- A token travels over TLS only, or within this machine.
- A URL says where it leads and nothing else: what git calls a remote helper (``ext::…``) is none.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator

from sealrun import ownfile
from sealrun.errors import SealrunError, UsageError
from sealrun.ownsection import Absolute, Name, Section, Variable, require_source
from sealrun.policy import parse_duration, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import BaseModel

_HINT = (
    "docs: how-to guides, Survive the loss of the machine. sealrun mirror status checks the file."
)
_LOCAL = ("localhost", "127.0.0.1", "::1")


class MirrorError(UsageError):
    """The mirror is not set up as it should be; the message names the file and the line."""


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, le=86400)]
Bytes = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=1 << 50)]


class Mirroring(Section):
    """``[mirror]``: what is taken, and how soon."""

    settle: Seconds = Field(
        default=5.0, description="after a run, so that several together are mirrored at once"
    )
    largest_file: Bytes = Field(
        default=10 << 20, description="a larger log or output stays behind, and is named"
    )
    largest_run: Bytes = Field(
        default=100 << 20, description="of all files of one run; what is over stays behind"
    )
    outputs: bool = Field(default=True, description="whether outputs are taken")


class Directory(Section):
    """A directory, for instance of a mounted disk."""

    type: Literal["directory"]
    path: Absolute = Field(description="absolute, or from ~; it has to exist")
    layers: bool = Field(
        default=False, description="also the base and environment layers that runs were made of"
    )


class GitRemote(Section):
    """A git repository that can be pushed to."""

    type: Literal["git"]
    url: SecretStr | None = Field(
        default=None, description="https://, ssh://, host:path or an absolute path"
    )
    url_file: Absolute | None = Field(default=None, description="private file that holds the URL")
    url_env: Variable | None = Field(default=None, description="variable that holds the URL")
    user: str = Field(default="git", description="name that goes with the token", max_length=200)
    token: SecretStr | None = Field(default=None, description="for https; a secret")
    token_file: Absolute | None = Field(
        default=None, description="private file that holds the token"
    )
    token_env: Variable | None = Field(default=None, description="variable that holds the token")
    layers: bool = Field(
        default=False, description="also the base and environment layers that runs were made of"
    )
    timeout: Seconds = Field(default=600.0, description="for one push or fetch")

    @model_validator(mode="after")
    def _one_source(self) -> GitRemote:
        require_source(self, "url", needed=True)
        require_source(self, "token", needed=False)
        return self


class Bucket(Section):
    """A bucket of S3 or of a store that speaks as S3 does: MinIO, R2, Ceph."""

    type: Literal["s3"]
    bucket: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", description="its name; it has to exist"
    )
    prefix: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*)?$",
        max_length=500,
        description="below which the mirror stands",
    )
    endpoint: str | None = Field(
        default=None, description="URL of another store than Amazon's", max_length=500
    )
    region: str | None = Field(
        default=None, pattern=r"^[a-z0-9-]{1,40}$", description="where the store wants one"
    )
    profile: str | None = Field(
        default=None, description="of your AWS configuration; else the default", max_length=200
    )
    layers: bool = Field(
        default=False, description="also the base and environment layers that runs were made of"
    )
    timeout: Seconds = Field(default=60.0, gt=0, description="for one answer of the store")

    @model_validator(mode="after")
    def _protected(self) -> Bucket:
        if {".", ".."} & set(self.prefix.split("/")):
            raise ValueError("the prefix holds a part that stores read as another place")
        if self.endpoint is not None:
            check_endpoint(self.endpoint)
        return self

    @property
    def url(self) -> str:
        """It as people write it."""
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def check_endpoint(url: str) -> None:
    """Refuse a store that is spoken to without protection, unless it is on this machine.

    Raises:
        ValueError: why it is refused.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ValueError("the endpoint is https://HOST, without a user or a password")
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise ValueError("the endpoint begins with http://: nothing protects what is sent there")


Place = Annotated[Directory | GitRemote | Bucket, Field(discriminator="type")]


class Settings(Section):
    """The whole file."""

    mirror: Mirroring = Field(default_factory=Mirroring)
    destination: dict[Name, Place] = Field(default_factory=dict)


@dataclass(frozen=True)
class Destination:
    """One place that the record is mirrored to, with its name.

    Attributes:
        name: as the user calls it.
        place: what it is.
    """

    name: str
    place: Directory | GitRemote | Bucket

    @property
    def origin(self) -> str:
        """Where it leads, without any secret."""
        place = self.place
        if isinstance(place, Directory):
            return place.path
        if isinstance(place, Bucket):
            return place.url + (f" at {place.endpoint}" if place.endpoint else "")
        if place.url_env is not None:
            return f"URL in the variable {place.url_env}"
        if place.url_file is not None:
            return f"URL in {place.url_file}"
        try:
            return address(secret(place, "url", {}) or "").url
        except SealrunError:
            return "URL in mirror.toml"

    def key(self, repository: str) -> str:
        """Return what its memory is kept under: another place by the same name is another one."""
        place = self.place
        where = place.path if isinstance(place, Directory) else self.origin
        text = f"{repository}\0{self.name}\0{place.type}\0{where}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def read(file: Path) -> tuple[Mirroring, tuple[Destination, ...]]:
    """Return what a configuration says; no destination where there is no file.

    Raises:
        MirrorError: it cannot be read, is not private, or does not validate.
    """
    with ownfile.faults_as(MirrorError, _HINT):
        found = ownfile.read(file, "the mirror's configuration")
        if found is None:
            return Mirroring(), ()
        try:
            settings = Settings.model_validate(found.values())
        except ValidationError as error:
            raise found.invalid(error, unions=("directory", "git", "s3")) from None
        if any(_holds_secret(place) for place in settings.destination.values()):
            found.require_secrecy()
    destinations = tuple(Destination(name, place) for name, place in settings.destination.items())
    return settings.mirror, destinations


def secret(place: GitRemote, name: str, environment: Mapping[str, str]) -> str | None:
    """Return a secret of a remote, wherever it is kept; None where it has none.

    Args:
        place: whose.
        name: ``url`` or ``token``.
        environment: where variables are looked up.

    Raises:
        MirrorError: it is kept somewhere where it is not, or where others can read it.
    """
    with ownfile.faults_as(MirrorError, _HINT):
        return ownfile.secret(place, name, environment)


def bucket(url: str) -> Bucket:
    """Return the bucket that an ``s3://BUCKET/PREFIX`` names; everything else is the AWS client's.

    Raises:
        MirrorError: it names none.
    """
    name, _, prefix = url.removeprefix("s3://").partition("/")
    try:
        return Bucket(type="s3", bucket=name, prefix=prefix.rstrip("/"))
    except ValidationError:
        raise MirrorError(f"{url} names no bucket", hint="It is s3://BUCKET/PREFIX.") from None


@dataclass(frozen=True)
class Address:
    """Where a git remote is, apart from what opens it.

    Attributes:
        url: without user and password, as git is called with it.
        user: that stood in the URL, if any; likewise ``password``.
    """

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)


def address(text: str) -> Address:
    """Take a URL apart, so that no secret of it gets into a command line.

    Raises:
        MirrorError: it is none that can be pushed to; the message does not repeat it.
    """
    if not text.isprintable() or text.startswith("-") or "::" in text.partition("/")[0]:
        raise _no_url()
    if text.startswith("/"):
        return Address(text)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _no_url() from None
    if parts.scheme in ("http", "https") and host:
        if parts.scheme == "http" and host not in _LOCAL:
            raise MirrorError("the URL begins with http://: nothing protects what is sent there")
        named = f"[{host}]" if ":" in host else host
        place = named if port is None else f"{named}:{port}"
        bare = urlunsplit((parts.scheme, place, parts.path, "", ""))
        user = unquote(parts.username) if parts.username else None
        return Address(bare, user, unquote(parts.password) if parts.password else None)
    if parts.scheme == "ssh" and host and parts.password is None:
        return Address(text)
    front, colon, path = text.partition(":")
    # host:path, as ssh and git have it; a name that begins with a dash would be an option of ssh.
    if colon and path and front and "/" not in front and "://" not in text and front[0] != "-":
        return Address(text)
    raise _no_url()


def _no_url() -> MirrorError:
    return MirrorError(
        "the URL is none that can be mirrored to",
        hint="It is https://…, ssh://…, host:path, or an absolute path.",
    )


@dataclass(frozen=True)
class Access:
    """A remote with what opens it.

    Attributes:
        url: as git is called with it; holds no secret.
        variables: for the environment of git's process.
        secrets: texts that must not appear in any message.
        timeout: seconds for one push or fetch.
    """

    url: str
    variables: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    timeout: float = 600.0


def access(place: GitRemote, environment: Mapping[str, str]) -> Access:
    """Return a remote with what opens it.

    Raises:
        MirrorError: URL or token are not where they are said to be.
    """
    where = address(secret(place, "url", environment) or "")
    token = secret(place, "token", environment)
    return opened(
        where, user=where.user or place.user, token=token or where.password, timeout=place.timeout
    )


def opened(
    where: Address, *, user: str = "git", token: str | None = None, timeout: float = 600.0
) -> Access:
    """Return an address with what git's process needs in its environment.

    Args:
        where: to.
        user: goes with the token.
        token: None where nothing is needed, or ssh knows it.
        timeout: seconds for one push or fetch.
    """
    settings = {
        "http.followRedirects": "false",
        "http.lowSpeedLimit": "1000",
        "http.lowSpeedTime": "60",
        # A helper of the system's could ask somebody, or answer for another remote.
        "credential.helper": "",
        "core.askPass": "",
    }
    secrets: tuple[str, ...] = ()
    if token is not None:
        code = base64.b64encode(f"{user}:{token}".encode()).decode("ascii")
        settings[f"http.{where.url}.extraHeader"] = f"Authorization: Basic {code}"
        secrets = (token, code)
    variables = {
        "GIT_ALLOW_PROTOCOL": "file:http:https:ssh",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=20 -oServerAliveInterval=15",
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (name, value) in enumerate(settings.items()):
        variables[f"GIT_CONFIG_KEY_{number}"] = name
        variables[f"GIT_CONFIG_VALUE_{number}"] = value
    return Access(where.url, variables, secrets, timeout)


def _holds_secret(place: Directory | GitRemote | Bucket) -> bool:
    if not isinstance(place, GitRemote):
        return False
    if place.token is not None:
        return True
    # A URL without a password may be read by anybody.
    url = "" if place.url is None else place.url.get_secret_value()
    return "@" in url.partition("://")[2].partition("/")[0] and url.startswith("http")


def describe() -> dict[str, type[BaseModel]]:
    """Return each section's heading with its model, for the reference."""
    return {
        "[mirror]": Mirroring,
        '[destination.NAME], type = "directory"': Directory,
        '[destination.NAME], type = "git"': GitRemote,
        '[destination.NAME], type = "s3"': Bucket,
    }
