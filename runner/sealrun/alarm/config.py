"""Who is told, and how: the user's own ``alarm.toml``.

Rules that this module keeps:

- The file is the user's, never the commit's: a commit must not choose who learns of it. It is
  refused when anybody else can write it, and when it holds a secret that anybody else can read.
- Unknown keys are errors; an error names the file and the line, and never repeats a value: a value
  may be a secret.
- A secret is a value in the file, a private file of its own (``…_file``) or a variable of the
  environment (``…_env``); it is read when it is used and kept nowhere.
- Pydantic is imported by reading alone: a run that has nothing to tell pays for none of this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator

from sealrun import ownfile
from sealrun.alarm.bodies import FACILITIES
from sealrun.alarm.notice import Kind
from sealrun.alarm.schedule import Limit
from sealrun.errors import UsageError
from sealrun.ownsection import Absolute, Name, Section, Variable, require_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pydantic import BaseModel

_HINT = "docs: how-to guides, Be told. sealrun alarm show checks the file."
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)")


class AlarmError(UsageError):
    """The alarm is not set up as it should be; the message names the file and the line."""


def _duration(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    return value


Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=30 * 86400)]


class Sending(Section):
    """``[sending]``: how patiently, and how much at once."""

    messages: int = Field(
        default=6, ge=1, le=1000, description="to people, in one interval; pages come on top of it"
    )
    per: Seconds = Field(
        default=600.0, description="the interval; what is over the limit waits for it"
    )
    timeout: Seconds = Field(
        default=10.0, le=60.0, description="for one try, from beginning to end"
    )
    retry: Seconds = Field(
        default=2.0, description="until the second try; doubles up to five minutes"
    )
    give_up: Seconds = Field(default=86400.0, description="after which a notice is given up")


class _Channel(Section):
    kinds: tuple[Kind, ...] = Field(
        default=(Kind.PAGE, Kind.ABORTED, Kind.FAULT, Kind.REFUSED, Kind.FLAGGED, Kind.ALERT),
        description="what this channel is told",
    )
    quiet: bool = Field(
        default=False,
        description="also of harmless changes by writers that nobody knows",
    )


class Webhook(_Channel):
    """A POST to a URL."""

    type: Literal["webhook"]
    url: SecretStr | None = Field(default=None, description="where to; a secret")
    url_file: Absolute | None = Field(default=None, description="private file that holds the URL")
    url_env: Variable | None = Field(default=None, description="variable that holds the URL")
    token: SecretStr | None = Field(
        default=None, description="sent as Authorization: Bearer; a secret"
    )
    token_file: Absolute | None = Field(
        default=None, description="private file that holds the token"
    )
    token_env: Variable | None = Field(default=None, description="variable that holds the token")
    format: Literal["json", "slack", "discord", "ntfy"] = Field(
        default="json", description="what the receiver understands"
    )
    ca_file: Absolute | None = Field(
        default=None, description="certificates to trust instead of the system's"
    )
    proxy: SecretStr | None = Field(default=None, description="URL of an HTTP proxy")

    @model_validator(mode="after")
    def _one_source(self) -> Webhook:
        require_source(self, "url", needed=True)
        require_source(self, "token", needed=False)
        return self


class File(_Channel):
    """One JSON object a line, appended to a file."""

    type: Literal["file"]
    path: Absolute = Field(description="absolute, or from ~")


class Syslog(_Channel):
    """The local log daemon."""

    type: Literal["syslog"]
    socket: Absolute = Field(default="/dev/log", description="of the daemon")
    facility: str = Field(
        default="user", description="user, daemon, auth, authpriv, cron, local0 to local7"
    )
    format: Literal["rfc3164", "rfc5424"] = Field(
        default="rfc3164", description="what the daemon takes"
    )

    @model_validator(mode="after")
    def _known(self) -> Syslog:
        if self.facility not in FACILITIES:
            raise ValueError(f"facility is one of {', '.join(FACILITIES)}")
        return self


class Apprise(_Channel):
    """Mail, Slack, a phone, … through the apprise library (``pip install 'sealrun[apprise]'``)."""

    type: Literal["apprise"]
    url: SecretStr | None = Field(
        default=None, description="apprise's URL of the service; a secret"
    )
    url_file: Absolute | None = Field(default=None, description="private file that holds the URL")
    url_env: Variable | None = Field(default=None, description="variable that holds the URL")

    @model_validator(mode="after")
    def _one_source(self) -> Apprise:
        require_source(self, "url", needed=True)
        return self


Channel = Annotated[Webhook | File | Syslog | Apprise, Field(discriminator="type")]


class Settings(Section):
    """The whole file."""

    sending: Sending = Field(default_factory=Sending)
    channel: dict[Name, Channel] = Field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """A channel with its name and how much it may be told.

    Attributes:
        limit: None for a channel that only machines read.
    """

    name: str
    channel: Webhook | File | Syslog | Apprise
    sending: Sending

    @property
    def limit(self) -> Limit | None:
        """How many messages in how many seconds."""
        if isinstance(self.channel, File | Syslog):
            return None
        return Limit(self.sending.messages, self.sending.per)

    @property
    def origin(self) -> str:
        """Where it leads, without any secret."""
        channel = self.channel
        if isinstance(channel, File):
            return channel.path
        if isinstance(channel, Syslog):
            return f"{channel.socket}, facility {channel.facility}"
        if channel.url_env is not None:
            return f"URL in the variable {channel.url_env}"
        return f"URL in {channel.url_file or 'alarm.toml'}"

    def wants(self, kind: Kind, *, quiet: bool) -> bool:
        """Tell whether it is told something of this kind."""
        if kind is Kind.TEST:
            return True
        return kind in self.channel.kinds and (self.channel.quiet or not quiet)


def read(file: Path) -> tuple[Told, ...]:
    """Return the channels of a configuration, in its order; none where there is no file.

    Raises:
        AlarmError: it cannot be read, is not private, or does not validate.
    """
    with ownfile.faults_as(AlarmError, _HINT):
        found = ownfile.read(file, "the alarm's configuration")
        if found is None:
            return ()
        try:
            settings = Settings.model_validate(found.values())
        except ValidationError as error:
            raise found.invalid(error, unions=("webhook", "file", "syslog", "apprise")) from None
        if any(_holds_secret(one) for one in settings.channel.values()):
            found.require_secrecy()
    return tuple(
        Told(name, channel, settings.sending) for name, channel in settings.channel.items()
    )


def secret(channel: Webhook | Apprise, name: str, environment: Mapping[str, str]) -> str | None:
    """Return a secret of a channel, wherever it is kept; None where it has none.

    Args:
        channel: whose.
        name: ``url`` or ``token``.
        environment: where variables are looked up.

    Raises:
        AlarmError: it is kept somewhere where it is not, or where others can read it.
    """
    with ownfile.faults_as(AlarmError, _HINT):
        return ownfile.secret(channel, name, environment)


def address(channel: Webhook, environment: Mapping[str, str]) -> str:
    """Return the URL of a webhook.

    Raises:
        AlarmError: it is no URL that can be posted to; the message does not repeat it.
    """
    url = secret(channel, "url", environment) or ""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isprintable() or not url.isascii() or " " in url:
        raise AlarmError(
            "the webhook's URL is none", hint="It begins with https:// (or http://) and a host."
        )
    return url


def trouble(told: Told, environment: Mapping[str, str]) -> str | None:
    """Return why a channel cannot be used as it is configured; None where it can be tried.

    Args:
        told: the channel.
        environment: where the variables of secrets are looked up.
    """
    channel = told.channel
    try:
        if isinstance(channel, Webhook):
            address(channel, environment)
            secret(channel, "token", environment)
        elif isinstance(channel, Apprise):
            secret(channel, "url", environment)
    except AlarmError as error:
        return error.message
    return None


def variables(channels: Iterable[Told]) -> frozenset[str]:
    """Return the names of the variables that hold secrets of these channels."""
    return frozenset(
        value
        for one in channels
        for key in ("url_env", "token_env")
        if (value := getattr(one.channel, key, None)) is not None
    )


def _holds_secret(channel: Webhook | File | Syslog | Apprise) -> bool:
    return any(
        isinstance(getattr(channel, name, None), SecretStr) for name in ("url", "token", "proxy")
    )


def describe() -> dict[str, type[BaseModel]]:
    """Return each section's heading with its model, for the reference."""
    return {
        "[sending]": Sending,
        '[channel.NAME], type = "webhook"': Webhook,
        '[channel.NAME], type = "file"': File,
        '[channel.NAME], type = "syslog"': Syslog,
        '[channel.NAME], type = "apprise"': Apprise,
    }
