"""One try to deliver one message through one channel.

Rules that this module keeps:

- A try either returns, and the message was taken, or raises ``Failed`` with a reason that names
  neither URL nor host: the libraries' own words hold them, so they are never passed on.
- No redirect is followed: the notice would go where the user did not send it.
- Of an answer only the status and one header count; its body is never read.
- Nothing of the caller's environment steers a try: no proxy, no netrc, no certificate variable. What
  is needed of that kind stands in ``alarm.toml``.
- A try may hang; who calls it ends it (``tries``).
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import sealrun
from sealrun.alarm import bodies
from sealrun.alarm.config import (
    AlarmError,
    Apprise,
    File,
    Syslog,
    Webhook,
    address,
    secret,
)
from sealrun.alarm.wording import defanged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.alarm.config import Told
    from sealrun.alarm.wording import Message

_OK, _MULTIPLE, _BAD = 200, 300, 400
#: The receiver understood and will never take this message (RFC 9110, 15.5).
_REJECTING = (400, 413, 422)


class Failed(Exception):
    """A message was not delivered.

    Args:
        why: in a few words, without any secret.
        wish: seconds that the receiver asks us to wait.
        rejected: the receiver refuses this message and would take another.
    """

    def __init__(self, why: str, *, wish: float | None = None, rejected: bool = False) -> None:
        super().__init__(why)
        self.why, self.wish, self.rejected = why, wish, rejected


def deliver(told: Told, message: Message, environment: Mapping[str, str]) -> None:
    """Try once to deliver a message.

    Args:
        told: through which channel.
        message: what.
        environment: where the variables of secrets are looked up.

    Raises:
        Failed: it was not delivered, as far as can be known.
    """
    channel = told.channel
    try:
        if isinstance(channel, Webhook):
            _post(channel, message, told.sending.timeout, environment)
        elif isinstance(channel, File):
            _append(channel, message)
        elif isinstance(channel, Syslog):
            _log(channel, message)
        else:
            _apprise(channel, message, environment)
    except AlarmError as error:
        raise Failed(error.message) from error


def _post(
    channel: Webhook, message: Message, timeout: float, environment: Mapping[str, str]
) -> None:
    import urllib3
    from urllib3.exceptions import HTTPError

    url = address(channel, environment)
    body = bodies.post(message, channel.format)
    headers = {"User-Agent": f"sealrun/{sealrun.__version__}", **body.headers}
    token = secret(channel, "token", environment)
    if token is not None:
        if not (token.isascii() and token.isprintable()):
            raise Failed("the token holds characters that no header can hold")
        headers["Authorization"] = f"Bearer {token}"
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(total=timeout),
        "retries": False,
        "ca_certs": channel.ca_file,
    }
    try:
        pool = (
            urllib3.ProxyManager(channel.proxy.get_secret_value(), **options)
            if channel.proxy is not None
            else urllib3.PoolManager(**options)
        )
        answer = pool.request(
            "POST", url, body=body.content, headers=headers, redirect=False, preload_content=False
        )
    except (HTTPError, OSError, ValueError) as error:
        raise Failed(_trouble(error)) from None
    status, wish = answer.status, _seconds(answer.headers.get("Retry-After"))
    answer.close()
    if _OK <= status < _MULTIPLE:
        return
    if status < _BAD:
        raise Failed(f"it redirects to another address (status {status}); give that address itself")
    raise Failed(f"it answers with status {status}", wish=wish, rejected=status in _REJECTING)


def _trouble(error: Exception) -> str:
    """Return in our words why nothing answered: the library's hold the URL."""
    from urllib3 import exceptions as of

    words: tuple[tuple[type[Exception], str], ...] = (
        (of.NameResolutionError, "its name cannot be resolved"),
        (of.ProxyError, "the proxy does not pass it on"),
        (of.SSLError, "its certificate or its TLS is not accepted"),
        (of.ConnectTimeoutError, "it does not answer in time"),
        (of.TimeoutError, "it does not answer in time"),
        (of.NewConnectionError, "it cannot be connected to"),
        (of.LocationValueError, "the URL is none"),
        (of.ProtocolError, "it hangs up, or speaks no HTTP"),
    )
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "it refuses the connection"
        if isinstance(cause, FileNotFoundError):
            return "the certificates of ca_file cannot be read"
        cause = cause.__cause__ or cause.__context__
    return next((text for kind, text in words if isinstance(error, kind)), "it cannot be reached")


def _seconds(header: str | None) -> float | None:
    # The other form of the header is a date: our own schedule is good enough for it.
    return float(header[:9]) if header and header.isascii() and header.isdigit() else None


def _append(channel: File, message: Message) -> None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(channel.path, flags, 0o600)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise Failed(f"{channel.path} is no regular file")
            content = bodies.line(message)
            if facts.st_size and os.pread(descriptor, 1, facts.st_size - 1) != b"\n":
                # A line that a full disk cut short must not swallow the next one.
                content = b"\n" + content
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Failed(f"{channel.path} cannot be written: {error.strerror}") from error


def _log(channel: Syslog, message: Message) -> None:
    datagram = bodies.syslog(message, channel.facility, channel.format, os.getpid())
    # Daemons listen for datagrams, a few for a stream, whose messages end with NUL (RFC 3164 says
    # nothing of either; so do glibc's syslog(3) and its clients).
    for kind, content in (
        (socket.SOCK_DGRAM, datagram),
        (socket.SOCK_STREAM, datagram + b"\0"),
    ):
        try:
            with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as link:
                link.connect(channel.socket)
                link.sendall(content)
        except OSError as error:
            if error.errno != errno.EPROTOTYPE or kind == socket.SOCK_STREAM:
                what = error.strerror or str(error)
                raise Failed(f"no log daemon at {channel.socket}: {what}") from error
        else:
            return


def _apprise(channel: Apprise, message: Message, environment: Mapping[str, str]) -> None:
    try:
        apprise: Any = importlib.import_module("apprise")
    except ImportError:
        raise Failed("apprise is not installed: pip install 'sealrun[apprise]'") from None
    url = secret(channel, "url", environment)
    service = apprise.Apprise()
    if not url or not service.add(url):
        raise Failed("apprise does not understand the URL")
    try:
        taken = service.notify(
            title=defanged(message.title), body=defanged(message.text), body_format="text"
        )
    except Exception as error:  # noqa: BLE001 - whatever one of a hundred services raises
        raise Failed(f"apprise: {type(error).__name__}") from None
    if not taken:
        raise Failed("the service that apprise speaks to did not take it")
