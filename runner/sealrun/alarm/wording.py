"""From a run's ending to what somebody is told, and how each kind of channel is told it.

Rules that this module keeps:

- Pure. Everything here takes records and returns text.
- A run's ending is one notice, however many files and alerts it has.
- Text for people says repository, run, what, which file, who and what to do next, in that order. It
  never says how to get around the guard, nor to approve or accept anything.
- What the experiment, a file's name or a writer's command line says is not repeated word by word:
  codes and their meanings are ours, names are bounded and escaped.
- No chat system finds anything to interpret: text that goes to one of unknown manners is defanged
  (``[.]``, ``[@]``); for one whose manners are known, it stands where nothing is interpreted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from sealrun.alarm.notice import Kind, Notice, visible
from sealrun.alarm.paging import Happening
from sealrun.reasons import MEANINGS, Reason, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sealrun.alarm.paging import Page
    from sealrun.ledger import Alert, Because, Judgement, WriterFacts

#: Reasons and files named in a text; the rest are counted.
_REASONS, _FILES = 3, 3
#: Hexadecimal digits of a commit, as people read it.
_SHORT = 10
_KINDS = {"refused": Kind.REFUSED, "aborted": Kind.ABORTED, "flagged": Kind.FLAGGED}
#: Classes of writers whose changes are nobody's trouble.
_OWN = ("loop", "experiment")
#: Reasons that name a foreign writer.
_FOREIGN = (Reason.WORKSPACE_DIFFERS_FOREIGN, Reason.EDIT_FOREIGN, Reason.CONTAINS_FOREIGN)

#: What makes a chat system link or mention: a dot inside a name that could be a host's, the end of
#: a scheme, and the characters that open mentions, channels, links and formatting.
_DOT = re.compile(r"(?<=\w)[.\u3002\uff0e\uff61](?=[^\W\d_])")
_SCHEME = re.compile(r"(?<=[A-Za-z]):(?=\S)|:(?=//)")
_OPENING = re.compile(r"[@#<>&`*|\[\]]")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that is over, as the alarm needs to know it.

    Attributes:
        workspace: absolute path; its last part names the repository.
        host: name of the machine.
        run: id.
        commit: full id; None where the run came to none.
        at: when it ended, in seconds since 1970.
        judgement: as on record; None where trouble of ours kept the run from being judged.
        harmless: the number still belongs to the commit.
        fault: what else there is to say, in a sentence: trouble of ours, or why nothing could start.
        alerts: of this run, and those from before it that it found.
    """

    workspace: str
    host: str
    run: str
    at: float
    commit: str | None = None
    judgement: Judgement | None = None
    harmless: bool = False
    fault: str | None = None
    alerts: Sequence[Alert] = ()


# -- what is told ----------------------------------------------------------------------------------


def notices_of(ended: Ended, name: str) -> tuple[Notice, ...]:
    """Return what to tell about a run's ending: one notice, or none where all is well.

    Args:
        ended: the run.
        name: id of the notice, a ULID.
    """
    alerts = _foreign(ended.alerts)
    kind = _kind(ended, alerts)
    if kind is None:
        return ()
    reasons = _notable(ended.judgement)
    paths = tuple(
        dict.fromkeys(
            [
                *(path for alert in alerts for path in (alert.path, *alert.paths)),
                *(path for because in reasons for path in because.paths),
            ]
        )
    )
    writer = next((words for one in alerts if (words := who(one.writer))), None)
    repository = PurePath(ended.workspace).name or ended.workspace
    harmless = ended.harmless or kind is Kind.ALERT
    return (
        Notice(
            id=name,
            kind=kind,
            at=ended.at,
            title=f"sealrun: {_HEADLINES[kind]} in {visible(repository, 60)}",
            text="\n".join(_lines(ended, kind, reasons, alerts, paths, writer)),
            repository=repository,
            host=ended.host,
            run=ended.run,
            commit=ended.commit,
            alerts=tuple(alert.id for alert in alerts),
            paths=paths,
            writer=writer,
            harmless=harmless,
            quiet=harmless and not _names_foreign(alerts, reasons),
        ),
    )


def happening_of(ended: Ended) -> Happening:
    """Return what a run's ending means for paging."""
    if ended.judgement is None:
        return Happening(ended.at, None, ("trouble of sealrun's own",) if ended.fault else ())
    refused = ended.judgement.kind == "refused"
    alerts = [
        alert
        for alert in _foreign(ended.alerts)
        # Without a session the loop's own edit during a run is nobody's, and does no harm.
        if not (ended.harmless and alert.writer.category == "unknown")
    ]
    causes = [_cause(alert) for alert in alerts]
    if not refused:
        told = {alert.reason for alert in alerts}
        causes += [
            because.code
            for because in _notable(ended.judgement)
            if because.code not in told and (not ended.harmless or because.code in _FOREIGN)
        ]
    return Happening(ended.at, refused, tuple(dict.fromkeys(causes)))


def page_of(page: Page, last: Notice, name: str) -> Notice:
    """Return the notice that wakes somebody up.

    Args:
        page: why.
        last: what was the last straw.
        name: id of the page, a ULID.
    """
    if page.cause is None:
        what = f"{page.count} runs in a row were refused"
    else:
        what = f"{page.count} times within a day: {page.cause}"
    return replace(
        last,
        id=name,
        kind=Kind.PAGE,
        title=f"sealrun: needs you in {visible(last.repository, 60)}",
        text=f"{visible(what)}; the last one:\n{last.text}",
        quiet=False,
    )


def who(writer: WriterFacts) -> str | None:
    """Return program, pid and class of a writer; None where nobody can be named."""
    process = writer.process
    if process is None:
        return None
    words = f"{_program(writer)}, pid {process.pid if process.pid is not None else 'unknown'}"
    found = "" if writer.how in ("live", "cached") else f", {writer.how}"
    return f"{words} ({writer.category}{found})"


_HEADLINES = {
    Kind.ABORTED: "run aborted",
    Kind.FAULT: "run not judged",
    Kind.REFUSED: "run refused",
    Kind.FLAGGED: "run flagged",
    Kind.ALERT: "change by another writer",
}


def _kind(ended: Ended, alerts: Sequence[Alert]) -> Kind | None:
    if ended.judgement is None:
        return Kind.FAULT if ended.fault else None
    judged = _KINDS.get(ended.judgement.kind)
    return judged or (Kind.ALERT if alerts else None)


def _foreign(alerts: Iterable[Alert]) -> list[Alert]:
    return [alert for alert in alerts if alert.writer.category not in _OWN]


def _names_foreign(alerts: Iterable[Alert], reasons: Iterable[Because]) -> bool:
    return any(alert.writer.category == "foreign" for alert in alerts) or any(
        because.code in _FOREIGN for because in reasons
    )


def _notable(judgement: Judgement | None) -> list[Because]:
    return [
        because
        for because in (judgement.reasons if judgement else ())
        if (because.severity or _own_severity(because.code)) != Severity.NOTE
    ]


def _own_severity(code: str) -> str:
    return MEANINGS[Reason(code)].severity if code in list(Reason) else Severity.FLAG


def _lines(
    ended: Ended,
    kind: Kind,
    reasons: Sequence[Because],
    alerts: Sequence[Alert],
    paths: Sequence[str],
    writer: str | None,
) -> Iterator[str]:
    repository = visible(PurePath(ended.workspace).name or ended.workspace, 60)
    yield f"repository {repository} on {visible(ended.host, 60)}"
    of = f" of commit {ended.commit[:_SHORT]}" if ended.commit else ""
    yield f"run {ended.run}{of}: {_judged(ended, kind)}"
    if ended.fault:
        yield f"what: {visible(ended.fault)}"
    for because in reasons[:_REASONS]:
        yield f"what: {because.code}: {_meaning(because.code)}"
    if len(reasons) > _REASONS:
        yield f"what: and {len(reasons) - _REASONS} reasons more"
    if kind is Kind.ALERT:
        yield f"what: {alerts[0].change} {alerts[0].phase}"
    if paths:
        more = f", and {len(paths) - _FILES} more" if len(paths) > _FILES else ""
        yield f"file: {', '.join(visible(path, 120) for path in paths[:_FILES])}{more}"
    if alerts:
        yield f"who: {writer or 'unavailable'}"
    yield f"next: {_next(ended, kind, alerts)}"


def _judged(ended: Ended, kind: Kind) -> str:
    if kind is Kind.FAULT:
        return "trouble of sealrun or the machine; nothing was judged"
    if kind is Kind.REFUSED:
        return "refused, nothing was run"
    if kind is Kind.ABORTED:
        return "aborted, its number does not count"
    if kind is Kind.ALERT:
        return "clean"
    if ended.harmless:
        return "flagged, its number still belongs to the commit"
    return "flagged, its number does not count"


def _meaning(code: str) -> str:
    return MEANINGS[Reason(code)].text if code in list(Reason) else "see the record"


def _next(ended: Ended, kind: Kind, alerts: Sequence[Alert]) -> str:
    if kind is Kind.FAULT:
        return "sealrun doctor, in that repository, says what is wrong there"
    if alerts:
        return f"sealrun alerts {alerts[0].id} shows the change; stop the program that makes it"
    if kind is Kind.REFUSED:
        return f"sealrun show {ended.run} says why; the loop gets no number until that is mended"
    return f"sealrun show {ended.run} says why"


def _cause(alert: Alert) -> str:
    return f"{alert.reason} by {_program(alert.writer)}"


def _program(writer: WriterFacts) -> str:
    process = writer.process
    if process is None:
        return "an unknown writer"
    program = process.exe or (process.cmdline[0] if process.cmdline else "")
    return visible(PurePath(program).name, 60) or "an unknown program"


# -- how it is put ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """What a channel carries at once.

    Attributes:
        notices: at least one.
        repeated: ids of those that may have been delivered before: an earlier sender died while it
            was sending them.
    """

    notices: tuple[Notice, ...]
    repeated: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        """A few words."""
        if len(self.notices) == 1:
            return self.notices[0].title
        return f"sealrun: {len(self.notices)} notices"

    @property
    def text(self) -> str:
        """All that matters, in lines."""
        if len(self.notices) == 1:
            again = "\n(may have been sent before)" if self.repeated else ""
            return self.notices[0].text + again
        lines = [f"{one.title.removeprefix('sealrun: ')}: {_brief(one)}" for one in self.notices]
        shown = lines[:_TOGETHER]
        if len(lines) > _TOGETHER:
            shown.append(f"and {len(lines) - _TOGETHER} more")
        if self.repeated:
            shown.append("(some may have been sent before)")
        return "\n".join([*shown, "next: sealrun log, in that repository, lists the runs"])

    @property
    def gravest(self) -> Kind:
        """The gravest kind in it."""
        order = list(Kind)
        return min((one.kind for one in self.notices), key=order.index)


#: Notices of which a message of many says something each.
_TOGETHER = 10


def _brief(notice: Notice) -> str:
    parts = [f"run {notice.run}" if notice.run else "", notice.paths[0] if notice.paths else ""]
    return ", ".join(part for part in (*parts, notice.writer or "") if part) or "no run"


def defanged(text: str) -> str:
    """Return text in which no chat system finds a link, a mention or formatting."""
    inert = _OPENING.sub(lambda match: _INERT[match[0]], text)
    return _SCHEME.sub("[:]", _DOT.sub("[.]", inert)).replace("](", "] (")


_INERT = {
    "@": "[at]",
    "#": "[no]",
    "<": "(",
    ">": ")",
    "&": "+",
    "`": "'",
    "*": "+",
    "|": "/",
    "[": "(",
    "]": ")",
}
