"""What goes over the wire to each kind of receiver.

Rules that this module keeps:

- Pure: a message comes in, bytes and headers go out.
- A receiver that is a program gets every field, exact but escaped; one that shows text to people
  gets text in which nothing is interpreted (``wording``).
- A repetition that cannot be ruled out says so, and carries the id of the first.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sealrun.alarm.notice import Kind, document
from sealrun.alarm.wording import defanged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sealrun.alarm.wording import Message

#: Version of the JSON that a webhook and a file get.
SCHEMA = 1
#: Severities of syslog (RFC 5424, table 2): critical, error, warning, notice.
_SEVERITY = {Kind.PAGE: 2, Kind.ABORTED: 3, Kind.FAULT: 3, Kind.TEST: 5}
_WARNING = 4
#: Facilities of syslog by the names of syslog.conf (RFC 5424, table 1).
FACILITIES: Mapping[str, int] = {
    "user": 1,
    "daemon": 3,
    "auth": 4,
    "cron": 9,
    "authpriv": 10,
    **{f"local{number}": 16 + number for number in range(8)},
}
#: Bytes of one syslog message; daemons take at least 2048 (RFC 5424, 6.1).
_SYSLOG = 2048


@dataclass(frozen=True)
class Body:
    """The content of a POST."""

    content: bytes
    headers: Mapping[str, str]


def webhook(message: Message) -> dict[str, Any]:
    """Return the JSON that a webhook gets."""
    return {
        "schema": SCHEMA,
        "title": defanged(message.title),
        "text": defanged(message.text),
        "kind": message.gravest.value,
        "possible_duplicate": bool(message.repeated),
        "notices": [
            {**document(one), "possible_duplicate": one.id in message.repeated}
            for one in message.notices
        ],
    }


def post(message: Message, form: str) -> Body:
    """Return what is posted.

    Args:
        message: what to tell.
        form: ``json``, ``slack``, ``discord`` or ``ntfy``.
    """
    if form == "ntfy":
        return Body(
            defanged(message.text).encode("utf-8"),
            {
                "Content-Type": "text/plain; charset=utf-8",
                # Header fields are ASCII (RFC 9110, 5.5).
                "Title": defanged(message.title).encode("ascii", "replace").decode(),
                "Priority": "urgent" if message.gravest is Kind.PAGE else "default",
                **_id(message),
            },
        )
    if form == "slack":
        content = _slack(message)
    elif form == "discord":
        content = _discord(message)
    else:
        content = webhook(message)
    return Body(
        json.dumps(content, ensure_ascii=True).encode("ascii"),
        {"Content-Type": "application/json", **_id(message)},
    )


def _id(message: Message) -> dict[str, str]:
    # One message of many may be cut otherwise the next time: then only its notices' ids count.
    alone = message.notices[0].id if len(message.notices) == 1 else None
    return {"Idempotency-Key": alone} if alone else {}


def _slack(message: Message) -> dict[str, Any]:
    # Preformatted text is the one place where Slack resolves neither mentions nor links.
    shown = [{"type": "text", "text": message.text}]
    preformatted = {"type": "rich_text_preformatted", "elements": shown}
    title = {"type": "plain_text", "text": defanged(message.title), "emoji": False}
    return {
        "text": defanged(message.title),
        "mrkdwn": False,
        "unfurl_links": False,
        "unfurl_media": False,
        "blocks": [
            {"type": "header", "text": title},
            {"type": "rich_text", "elements": [preformatted]},
        ],
    }


def _discord(message: Message) -> dict[str, Any]:
    # 2,000 characters are the most that a message may hold (Discord, "Create Message").
    inside = message.text.replace("`", "'")[:1700]
    return {
        "content": f"{defanged(message.title)}\n```text\n{inside}\n```",
        "allowed_mentions": {"parse": []},
    }


def line(message: Message) -> bytes:
    """Return a JSON line for each notice, for a file."""
    return b"".join(
        json.dumps(
            {
                "schema": SCHEMA,
                **document(one),
                "time": _iso(one.at),
                "possible_duplicate": one.id in message.repeated,
            },
            ensure_ascii=True,
        ).encode("ascii")
        + b"\n"
        for one in message.notices
    )


def syslog(message: Message, facility: str, form: str, pid: int) -> bytes:
    """Return a datagram for the local log daemon.

    Args:
        message: what to tell; its first notice dates it.
        facility: a name of ``FACILITIES``.
        form: ``rfc3164``, which every daemon takes at its local socket, or ``rfc5424``.
        pid: of the process that sends it.
    """
    first = message.notices[0]
    priority = FACILITIES[facility] * 8 + _SEVERITY.get(message.gravest, _WARNING)
    again = " (possible duplicate)" if message.repeated else ""
    flat = f"{message.title}{again}; " + "; ".join(message.text.split("\n"))
    if form == "rfc5424":
        host = first.host.encode("ascii", "replace").decode().replace(" ", "-")[:255] or "-"
        # The byte order mark says that the text is UTF-8 (RFC 5424, 6.4).
        head = f"<{priority}>1 {_iso(first.at)} {host} sealrun {pid} {first.kind.value} - \ufeff"
    else:
        moment = time.localtime(first.at)
        day = f"{_MONTHS[moment.tm_mon - 1]} {moment.tm_mday:2d}"
        head = f"<{priority}>{day} {time.strftime('%H:%M:%S', moment)} sealrun[{pid}]: "
    # What is cut is cut between two characters.
    return (head + flat).encode("utf-8")[:_SYSLOG].decode("utf-8", "ignore").encode("utf-8")


#: Names that do not depend on anybody's locale.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
