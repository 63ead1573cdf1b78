"""Downloads from a server that may be broken or hostile: bounded, resumed, checked.

Rules that this module keeps:

- Only http and https are spoken, and never http where https was asked for, whatever a redirect
  says. A token goes to the scheme, host and port that it is for and nowhere else; ``netrc`` is
  not read.
- A body is never larger than asked for, and is kept only when it hashes to what was expected;
  compression is not accepted, so that what is counted is what is written.
- What breaks off is resumed where it stopped; what was resumed and does not hash is downloaded
  once from the start before the server is blamed.
- No message holds a query or a token: a redirect's query is a signature.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from sealrun.errors import EnvironmentFault, SealRefused, StorageFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import urllib3

    from sealrun.progress import Task

_CHUNK = 1 << 20
#: Bytes of one JSON answer.
LARGEST_ANSWER = 64 << 20
#: Redirects that one request follows.
MOST_REDIRECTS = 8
#: Breaks of one file: in a row without a byte in between, and in all.
MOST_STALLS, MOST_BREAKS = 4, 100
#: Seconds to connect, and between two pieces of a body.
_CONNECT, _READ = 20.0, 60.0
#: Bytes that have to come in so many seconds.
LEAST, PATIENCE = 1 << 20, 300.0
#: Statuses of trouble that passes (RFC 9110, RFC 6585).
_PASSING = (429, 500, 502, 503, 504)
_OK, _PARTIAL, _NOT_SATISFIABLE = 200, 206, 416
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Expected:
    """What a file has to be.

    Attributes:
        largest: bytes that it may have at most.
        size: bytes that it must have; None where nobody said.
        sha256: hexadecimal; None where a git id is known instead.
        blob: git's id of the blob, SHA-1.
    """

    largest: int
    size: int | None = None
    sha256: str | None = None
    blob: str | None = None


class Answered(EnvironmentFault):
    """A server answered with a status that is no success; ``code`` is the status."""

    def __init__(self, message: str, code: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class _Broken(Exception):
    """A body ended early; what came is kept."""


def shown(url: str) -> str:
    """Return a URL as messages may hold it: without its query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:400]


def origin(url: str) -> tuple[str, str, int | None]:
    """Return what a token is bound to (RFC 6454): scheme, host, port.

    Raises:
        EnvironmentFault: the URL cannot be read.
    """
    try:
        parts = urlsplit(url)
        return parts.scheme, (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise EnvironmentFault(f"an address that cannot be read: {error}") from error


class Server:
    """Requests to one server and to where it redirects.

    Args:
        url: an address on it: the token is for its origin.
        token: sent as bearer to that origin alone.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self._origin = origin(url)
        self._token = token

    def json(self, url: str) -> tuple[Any, str | None]:
        """Return a JSON answer, and the address of its next page where it names one.

        Raises:
            Answered: another status than 200.
            EnvironmentFault: no JSON, too much of it, or no answer; the next page is elsewhere.
        """
        from urllib3.exceptions import HTTPError

        response, _ = self._open(url, {"Accept": "application/json"})
        try:
            content = b""
            for piece in _pieces(response, url):
                content += piece
                if len(content) > LARGEST_ANSWER:
                    break
        except HTTPError as error:
            raise _unreachable(url, error) from error
        finally:
            response.close()
        if response.status != _OK:
            raise _status(url, response.status)
        if len(content) > LARGEST_ANSWER:
            raise EnvironmentFault(f"{shown(url)} answers with more than {LARGEST_ANSWER} bytes")
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise EnvironmentFault(
                f"{shown(url)} does not answer with JSON",
                hint="Check the address: this is not a hub, or a login page stands before it.",
            ) from error
        return document, self._next(url, response.headers.get("link", ""))

    def _next(self, url: str, link: str) -> str | None:
        for part in link.split(","):
            address, _, relation = part.partition(";")
            if 'rel="next"' in relation:
                following = urljoin(url, address.strip().strip("<>"))
                if origin(following) != self._origin:
                    raise EnvironmentFault(
                        f"{shown(url)} continues on another server: {shown(following)}"
                    )
                return following
        return None

    def file(self, url: str, into: Path, expected: Expected, task: Task, what: str) -> None:
        """Download a file, or the rest of it, and check it.

        Args:
            into: where it grows; what an earlier call left there is used.
            what: how messages name it.

        Raises:
            SealRefused: its bytes are not those that were expected.
            Answered: another status than success.
            EnvironmentFault: no answer, too many breaks, or more bytes than expected.
            StorageFault: the disk does not take it.
        """
        resumed = into.exists() and into.stat().st_size > 0
        while True:
            resumed = self._complete(url, into, expected, task, what) or resumed
            wrong = _differs(into, expected)
            if wrong is None:
                return
            into.unlink()
            if not resumed:
                raise SealRefused(
                    f"{what} from {shown(url)} is not the file that was expected: {wrong}",
                    hint="Nothing was kept. Find out why this server serves other bytes before you "
                    "change what is expected.",
                )
            resumed = False

    def _complete(self, url: str, into: Path, expected: Expected, task: Task, what: str) -> bool:
        """Download until the body has ended; tell whether any of it was resumed."""
        stalls = breaks = 0
        resumed = False
        while True:
            have = into.stat().st_size if into.exists() else 0
            if expected.size is not None and have == expected.size and have:
                return resumed
            try:
                self._more(url, into, have, expected, task, what)
            except _Broken as error:
                now = into.stat().st_size if into.exists() else 0
                stalls = 0 if now > have else stalls + 1
                breaks += 1
                if stalls >= MOST_STALLS or breaks >= MOST_BREAKS:
                    raise EnvironmentFault(
                        f"{what}: {shown(url)} broke off {breaks} times, last at byte {now}: {error}",
                        hint="What came is kept: sealrun warm goes on from there.",
                    ) from error
                resumed = resumed or now > 0
                time.sleep(min(0.2 * 2**stalls, 5.0))
            else:
                return resumed

    def _more(
        self, url: str, into: Path, have: int, expected: Expected, task: Task, what: str
    ) -> None:
        from urllib3.exceptions import HTTPError

        asked = {"Range": f"bytes={have}-"} if have else {}
        response, reached = self._open(url, asked)
        try:
            if response.status == _NOT_SATISFIABLE and have:
                _cut(into, 0, task)
                raise _Broken("the server cannot resume")
            if response.status not in (_OK, _PARTIAL):
                raise _status(url, response.status)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise EnvironmentFault(f"{what}: {shown(reached)} compresses though asked not to")
            start = _start(response)
            if start != have:
                _cut(into, start, task)
                if start:
                    raise _Broken("the server resumed elsewhere")
            _append(_pieces(response, reached), into, start, expected, task, what)
        except HTTPError as error:
            raise _Broken(type(error).__name__) from error
        finally:
            response.close()

    def _open(self, url: str, headers: Mapping[str, str]) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Send a request and follow redirects; return the answer and where it came from."""
        import urllib3

        asked = url
        for _ in range(MOST_REDIRECTS):
            sent = {"User-Agent": "sealrun", "Accept-Encoding": "identity", **headers}
            if self._token is not None and origin(url) == self._origin:
                sent["Authorization"] = f"Bearer {self._token}"
            try:
                response = _pool(url).request(
                    "GET",
                    url,
                    headers=sent,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=urllib3.Timeout(connect=_CONNECT, read=_READ),
                    retries=urllib3.Retry(
                        total=4,
                        status_forcelist=_PASSING,
                        backoff_factor=0.2,
                        raise_on_status=False,
                        # A server does not decide how long we sleep.
                        respect_retry_after_header=False,
                    ),
                )
            except urllib3.exceptions.HTTPError as error:
                raise _unreachable(url, error) from error
            if response.status not in _REDIRECTS:
                return response, url
            response.close()
            url = _redirected(url, response.headers.get("location", ""))
        raise EnvironmentFault(f"{shown(asked)} redirects more than {MOST_REDIRECTS} times")


def _pieces(response: urllib3.BaseHTTPResponse, url: str) -> Iterator[bytes]:
    """Yield a body as it comes.

    Raises:
        EnvironmentFault: it comes so slowly that it never ends.
    """
    since, came = time.monotonic(), 0
    while piece := response.read1(_CHUNK):
        yield piece
        came += len(piece)
        now = time.monotonic()
        if now - since > PATIENCE:
            if came < LEAST:
                raise EnvironmentFault(
                    f"{shown(url)} sends {came} bytes in {PATIENCE:.0f} s: that is no download",
                    hint="Try sealrun warm again later: what came is kept.",
                )
            since, came = now, 0


def _redirected(url: str, location: str) -> str:
    following = urljoin(url, location)
    scheme, host, _ = origin(following)
    allowed = ("https",) if urlsplit(url).scheme == "https" else ("https", "http")
    if scheme not in allowed or not host or "@" in urlsplit(following).netloc:
        raise EnvironmentFault(
            f"{shown(url)} redirects to {shown(following)!r}, which is not followed",
            hint=f"Only {' and '.join(allowed)} is followed from there.",
        )
    return following


def _pool(url: str) -> urllib3.PoolManager:
    from urllib.request import getproxies, proxy_bypass

    import urllib3

    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy)
    return urllib3.PoolManager()


def _start(response: urllib3.BaseHTTPResponse) -> int:
    """Return at which byte of the file an answer begins (RFC 9110, section 14.4)."""
    if response.status != _PARTIAL:
        return 0
    first = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
    if not first.isdecimal():
        raise _Broken("the server does not say where it resumes")
    return int(first)


def _cut(into: Path, size: int, task: Task) -> None:
    if into.exists():
        have = into.stat().st_size
        if size > have:
            raise _Broken("the server left bytes out")
        os.truncate(into, size)
        task.advance(size - have)


def _append(
    chunks: Iterator[bytes],
    into: Path,
    have: int,
    expected: Expected,
    task: Task,
    what: str,
) -> None:
    largest = expected.largest if expected.size is None else expected.size
    try:
        with into.open("ab") as file:
            for chunk in chunks:
                have += len(chunk)
                if have > largest:
                    raise EnvironmentFault(
                        f"{what}: the server sends more than the {largest} bytes that it may have",
                        hint="Nothing of it counts. Check what this server serves there.",
                    )
                file.write(chunk)
                task.advance(len(chunk))
    except OSError as error:
        raise StorageFault(
            f"{what} cannot be written: {error.strerror}",
            hint="Free space, or set SEALRUN_HOME to another disk; what came is kept.",
        ) from error
    if expected.size is not None and have < expected.size:
        raise _Broken(f"{have} of {expected.size} bytes came")


def _differs(file: Path, expected: Expected) -> str | None:
    """Return how a file is not what was expected; None where it is."""
    size = file.stat().st_size if file.exists() else 0
    if not file.exists():
        file.touch()
    if expected.size is not None and size != expected.size:
        return f"it has {size} bytes, not {expected.size}"
    checks: list[tuple[str, str, Callable[[], Any]]] = []
    if expected.sha256 is not None:
        checks.append(("sha256", expected.sha256, hashlib.sha256))
    if expected.blob is not None:
        checks.append(("git id", expected.blob, lambda: _git_blob(size)))
    for name, wanted, begin in checks:
        digest = begin()
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != wanted:
            return f"its {name} is {digest.hexdigest()}, not {wanted}"
    return None


def _git_blob(size: int) -> Any:  # noqa: ANN401 - hashlib's types have no public name
    digest = hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % size)
    return digest


def _status(url: str, code: int) -> Answered:
    hints = {
        401: "It wants a token: name the variable that holds one as token under [[fetch]].",
        403: "The token, if any, does not open it; a gated repository asks for consent first.",
        404: "It is not there, or is private: a token is named as token under [[fetch]].",
    }
    hint = hints.get(code, "Try sealrun warm again later: what came is kept.")
    return Answered(f"{shown(url)} answers {code}", code, hint=hint)


def _unreachable(url: str, error: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        f"{shown(url)} cannot be reached: {type(error).__name__}",
        hint="Check the network and the proxy variables; what came is kept for the next try.",
    )
