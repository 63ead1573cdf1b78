"""``sealrun alerts``: the mutations on record, what is open, and whether the record itself holds.

Rules that this module keeps:

- It reads; it never begins a ledger. The one thing that it writes is an acceptance, and that only a
  human at a terminal can make it write.
- One row an alert, in its latest state, read from the events and not from their index; asked about
  one run, in its state then.
- Evidence that is shown is hashed again first; what is missing or changed is said.
- An unknown writer is ``unavailable``; a candidate is no writer, and no filter finds it as one.
- The chain proves that no event was edited, removed or moved. That it was not cut at its end, or
  written anew as a whole, only an anchor shows that was kept elsewhere; a sound answer without one
  says so.
"""

from __future__ import annotations

import fnmatch
import json as encoder
import re
import select
import shlex
import sys
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sealrun.cli import console
from sealrun.cli.reading import (
    Here,
    chosen,
    local_time,
    no_such_run,
    open_here,
    since,
    visible,
)
from sealrun.errors import Status, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.table import Table

    from sealrun.alerts.grouping import Standing
    from sealrun.ledger import Alert, Anchor, ChainReport, Ledger, Recorded, WriterFacts

#: Characters of an alert's id in the table, at least.
_SHORTEST = 8
#: Milliseconds between two looks for new alerts.
_EVERY = 500
_COLUMNS = (
    *("alert", "state", "when", "run", "phase", "path", "change", "writer", "count", "restored"),
)
#: Lines of one alert's states, and of its diff when a human is asked.
_STATES, _DIFF = 50, 40
_ANCHOR = re.compile(r"([1-9]\d{0,17}):([0-9a-f]{64})")


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[accept] [ID]",
            help="An alert's id or its beginning: show this one whole. After the word accept: a "
            "human at a terminal accepts it.",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, help="At most so many, the newest.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Only of this run; its id or the beginning of it.")
    ] = None,
    path: Annotated[
        str | None, typer.Option(help="Only of paths that match this pattern, e.g. 'src/*.py'.")
    ] = None,
    writer: Annotated[
        str | None,
        typer.Option(help="Only where the writer's program, command line or class holds this."),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(
            help="Only of this phase: before-commit, after-commit, during-run, in-container; "
            "repeatable."
        ),
    ] = None,
    since_: Annotated[
        str | None, typer.Option("--since", help="Only those seen since: 12h, 7d, 2026-03-08.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("-f", "--follow", help="Print new ones as they are recorded, until stopped."),
    ] = False,
    head: Annotated[
        bool, typer.Option("--head", help="Print the head of the chain, to keep as an anchor.")
    ] = False,
    verify_chain: Annotated[
        bool, typer.Option("--verify-chain", help="Check that the record was not tampered with.")
    ] = False,
    anchor: Annotated[
        str | None,
        typer.Option(metavar="SEQ:HASH", help="With --verify-chain: a head that was kept earlier."),
    ] = None,
    only_open: Annotated[
        bool, typer.Option("--open", help="Only those that nobody has accepted.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option(help="With accept: why these bytes are all right.")
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON document; with --follow, one object a line."),
    ] = False,
) -> Status:
    """List the mutations on record, the newest first; show one; check the record.

    An alert is open until a human accepts it: each later commit is searched for its bytes.

    With --verify-chain it exits with 121 where the record was tampered with: an event was edited,
    removed or moved, or, against --anchor, the chain was cut or written anew.

    Example:  sealrun alerts --path 'train*' --since 12h
    """
    from sealrun.verdict import Phase

    accept, alert = parse_words(words or [], reason)
    filters = (count, run, path, writer, phase, since_, only_open or None)
    _check_modes(
        {
            "accept": accept,
            "ID": alert is not None and not accept,
            "--follow": follow,
            "--head": head,
            "--verify-chain": verify_chain,
        },
        filtered=any(value is not None for value in filters),
        anchored=anchor is not None,
    )
    phases = chosen("--phase", phase, tuple(Phase))
    known = parse_anchor(anchor) if anchor is not None else None
    moment = since(since_) if since_ else None
    with open_here() as here:
        if head:
            return _print_head(here, json=json)
        if verify_chain:
            return _verify(here, known, json=json)
        if alert is not None:
            return _accept(here, alert, reason or "") if accept else _show(here, alert, json=json)
        if run is not None:
            if here.ledger is None:
                raise no_such_run(run)
            run = here.ledger.resolve(run)
        wanted = Wanted(run, path, writer, phases, moment, only_open)
        if follow:
            return _follow(here, wanted, count, json=json)
        return _list(here, wanted, count, json=json)


def parse_words(words: Sequence[str], reason: str | None) -> tuple[bool, str | None]:
    """Return whether an alert is to be accepted, and which is meant.

    Raises:
        UsageError: the words make no call of this command.
    """
    # No alert's id begins like this: ULIDs begin with a digit.
    accept = words[:1] == ["accept"]
    names = words[1:] if accept else words
    if len(names) > 1 or (accept and not names):
        raise UsageError(
            "one alert is needed" if accept else f"{names[1]!r} is one word too many",
            hint="sealrun alerts --help shows how it is called.",
        )
    if accept != (reason is not None and bool(reason.strip())):
        raise UsageError(
            "accept needs --reason with some words" if accept else "--reason belongs to accept"
        )
    return accept, names[0] if names else None


def _check_modes(modes: dict[str, bool], *, filtered: bool, anchored: bool) -> None:
    given = [name for name, is_given in modes.items() if is_given]
    if len(given) > 1:
        raise UsageError(
            f"{given[0]} and {given[1]} exclude each other", hint="Call the command once for each."
        )
    if filtered and given and given != ["--follow"]:
        raise UsageError(
            f"{given[0]} takes no filter", hint="Filters choose what is listed or followed."
        )
    if anchored and not modes["--verify-chain"]:
        raise UsageError("--anchor needs --verify-chain")


# -- choosing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """Which alerts are wanted; None or empty means any.

    Attributes:
        run: whole id.
        path: shell pattern that one of the alert's paths matches; ``*`` spans directories.
        writer: part of the writer's program, command line or class, in either case.
        phases: any of these.
        since: last seen at or after; UTC as the ledger writes it.
        open: only those that nobody has accepted.
    """

    run: str | None = None
    path: str | None = None
    writer: str | None = None
    phases: tuple[str, ...] = ()
    since: str | None = None
    open: bool = False

    def holds(self, recorded: Recorded[Alert], paths: Iterable[str] = ()) -> bool:
        """Tell whether an alert is wanted; whether it is open is not looked at.

        Args:
            paths: that it was about on other occasions.
        """
        alert = recorded.event
        if self.run is not None and alert.run != self.run:
            return False
        if self.phases and alert.phase not in self.phases:
            return False
        if self.since is not None and (alert.last_at or recorded.at) < self.since:
            return False
        pattern = self.path
        if pattern is not None and not any(
            fnmatch.fnmatchcase(one, pattern) for one in (alert.path, *alert.paths, *paths)
        ):
            return False
        part = self.writer
        return part is None or any(
            part.casefold() in name.casefold() for name in _names(alert.writer)
        )


def _names(writer: WriterFacts) -> Iterator[str]:
    yield writer.category
    if writer.process is None:
        yield "unavailable"
        return
    if writer.process.exe:
        yield writer.process.exe
    yield shlex.join(writer.process.cmdline)


def latest(ledger: Ledger | None, run: str | None = None) -> tuple[Standing, ...]:
    """Return each alert as it stands, the newest first.

    They come from the events themselves, which the chain covers, not from the index of them.

    Args:
        run: take what was seen in this run alone.
    """
    from sealrun.alerts.grouping import stand
    from sealrun.ledger import Alert, AlertAccepted

    if ledger is None:
        return ()
    return stand(ledger.events(Alert, run=run), ledger.events(AlertAccepted))


def find_alert(alerts: Sequence[Standing], name: str) -> Standing:
    """Return the one alert whose id begins like this.

    Raises:
        UsageError: there is none, or several.
    """
    from sealrun.ledger.ulid import canonical_prefix

    prefix = canonical_prefix(name)
    found = [one for one in alerts if prefix is not None and one.id.startswith(prefix)]
    if not found:
        raise UsageError(f"there is no alert {name!r} here", hint="sealrun alerts lists them.")
    if len(found) > 1:
        ids = ", ".join(one.id for one in found[:10])
        raise UsageError(
            f"alert {name!r} is ambiguous: {ids}{', …' if len(found) > 10 else ''}",  # noqa: PLR2004 - as listed
            hint="Give more characters of its id.",
        )
    return found[0]


def prefixes(ids: Iterable[str]) -> dict[str, str]:
    """Return for each id its shortest beginning that no other has, at least 8 characters."""
    ordered = sorted(set(ids))
    short: dict[str, str] = {}
    for number, one in enumerate(ordered):
        neighbours = ordered[max(number - 1, 0) : number] + ordered[number + 1 : number + 2]
        length = _SHORTEST
        while any(other.startswith(one[:length]) for other in neighbours) and length < len(one):
            length += 1
        short[one] = one[:length]
    return short


# -- listing -------------------------------------------------------------------------------------


def _list(here: Here, wanted: Wanted, count: int | None, *, json: bool) -> Status:
    screen = console.current()
    everything = latest(here.ledger)
    among = everything if wanted.run is None else latest(here.ledger, wanted.run)
    found = [
        one
        for one in among
        if wanted.holds(one.alert, one.paths) and (one.is_open or not wanted.open)
    ][:count]
    if json:
        screen.json({"alerts": [_document(one) for one in found]})
    elif here.ledger is None or not everything:
        screen.say("no alert is on record")
    elif not found:
        screen.say("no alert matches")
    else:
        screen.table(_table(here.ledger, found, prefixes(one.id for one in everything)))
    return Status.OK


def _document(one: Standing) -> dict[str, Any]:
    """Return an alert as JSON: its latest event, and how it stands."""
    from sealrun.ledger import alert_document
    from sealrun.ledger.codec import to_document

    accepted: dict[str, Any] | None = None
    if one.accepted is not None:
        accepted = {"seq": one.accepted.seq, "at": one.accepted.at}
        accepted |= to_document(one.accepted.event)[0]
    return {
        **alert_document(one.alert),
        "state": one.state,
        "accepted": accepted,
        "all_paths": list(one.paths),
        "runs": list(one.runs),
    }


def _table(ledger: Ledger, alerts: list[Standing], short: dict[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        shown.add_column(
            name,
            no_wrap=name not in ("path", "writer"),
            justify="right" if name == "count" else "left",
        )
    for one in alerts:
        cells = _cells(ledger, one, short[one.id])
        shown.add_row(*(Text(visible(cell), no_wrap=True, overflow="ellipsis") for cell in cells))
    return shown


def _cells(ledger: Ledger, one: Standing, short: str) -> tuple[str | None, ...]:
    alert = one.alert.event
    return (
        short,
        one.state,
        local_time(alert.last_at or one.alert.at),
        ledger.shortest(alert.run) if alert.run else None,
        alert.phase,
        paths_in_words(alert),
        alert.change,
        brief_writer(alert.writer),
        str(alert.count),
        {None: None, True: "yes", False: "no"}[alert.restored],
    )


def paths_in_words(alert: Alert) -> str:
    """Return an alert's first path, and how many more there are."""
    more = len(set(alert.paths) - {alert.path})
    return f"{alert.path} and {more} more" if more else alert.path


def brief_writer(writer: WriterFacts) -> str:
    """Return who made a change in a few words: class, program and pid."""
    process = writer.process
    if process is None:
        return "unavailable"
    program = process.exe or (process.cmdline[0] if process.cmdline else "unknown program")
    pid = "" if process.pid is None else f" [{process.pid}]"
    return f"{writer.category}: {PurePath(program).name or program}{pid}"


def _show(here: Here, name: str, *, json: bool) -> Status:
    from sealrun.cli.show import mutation

    found = find_alert(latest(here.ledger), name)
    screen = console.current()
    if json:
        screen.json({"alert": _document(found)})
        return Status.OK
    alert = found.alert.event
    screen.data(f"alert {visible(found.id)}")
    screen.data(f"run   {visible(alert.run or 'none: between runs')}")
    if len(found.runs) > 1:
        screen.data(f"      seen in {len(found.runs)} runs, first in {visible(found.runs[0])}")
    screen.data(f"state {visible(_state(found))}")
    screen.data("")
    for line in mutation(found.alert):
        screen.data(line)
    for line in _evidence(found):
        screen.data(line)
    return Status.OK


def _state(one: Standing) -> str:
    if one.accepted is None:
        return one.state
    event = one.accepted.event
    who = event.login or event.uid
    words = f"accepted by {who}, {local_time(one.accepted.at, seconds=True)}: {event.reason}"
    return f"open: other bytes came later; before, {words}" if one.is_open else words


def _evidence(one: Standing) -> Iterator[str]:
    """Yield for each foreign state that is on record whether its bytes are still what they were."""
    from sealrun.alerts.grouping import read_evidence

    shown = [state for state in one.states if state.sha256 is not None]
    for state in shown[:_STATES]:
        _, problem = read_evidence(state.evidence, state.sha256)
        yield f"  kept {visible(state.path)}: {problem or 'its evidence is as it was taken'}"
    if len(shown) > _STATES:
        yield f"  and {len(shown) - _STATES} more; --json lists them all"


# -- accepting -----------------------------------------------------------------------------------


def _accept(here: Here, name: str, reason: str) -> Status:
    from sealrun import facts
    from sealrun.cli.human import confirm
    from sealrun.ledger import AlertAccepted, open_ledger

    found = find_alert(latest(here.ledger), name)
    screen = console.current()
    if not found.is_open:
        screen.say(f"alert {found.id} waits for nobody: {_state(found)}")
        return Status.OK
    terminal = confirm(_question(found, reason), "accept")
    host = facts.host()
    event = AlertAccepted(
        alert=found.id,
        upto=found.alert.seq,
        reason=reason,
        uid=host.uid,
        login=host.user,
        terminal=terminal,
    )
    place = here.places.ledger(here.repository)
    with open_ledger(place, here.repository, pinned_refs_exist=True, create=True) as ledger:
        ledger.append(event)
    screen.say(f"accepted: the bytes of alert {found.id} until now")
    return Status.OK


def _question(one: Standing, reason: str) -> Iterator[str]:
    from sealrun.cli.show import writer_in_words

    alert = one.alert.event
    yield f"Alert {one.id}, seen {alert.count} times"
    yield f"  writer: {writer_in_words(alert.writer)}"
    yield from (f"  {path}" for path in one.paths[:_STATES])
    if len(one.paths) > _STATES:
        yield f"  and {len(one.paths) - _STATES} more paths"
    diff = (alert.diff or "").split("\n")
    yield from (f"  | {line}" for line in diff[:_DIFF])
    if len(diff) > _DIFF:
        yield f"  | {len(diff) - _DIFF} more lines"
    yield "Commits that hold these bytes will not be flagged for them any more."
    yield f"  reason: {reason}"


# -- following -----------------------------------------------------------------------------------


def _follow(here: Here, wanted: Wanted, count: int | None, *, json: bool) -> Status:
    if here.ledger is not None:
        return _follow_ledger(here.ledger, here.ledger.head()[0], wanted, count, json=json)
    # The first run of this repository begins the ledger; all that is in it then is new.
    while _wait():
        with open_here() as again:
            if again.ledger is not None:
                return _follow_ledger(again.ledger, 0, wanted, count, json=json)
    return Status.OK


def _follow_ledger(
    ledger: Ledger, seen: int, wanted: Wanted, count: int | None, *, json: bool
) -> Status:
    from sealrun.ledger import Alert

    show: Callable[[Recorded[Alert]], str] = _json_line if json else _line
    left = count
    while left is None or left > 0:
        for one in ledger.events(Alert, after=seen):
            seen = one.seq
            if wanted.holds(one) and (left is None or left > 0):
                console.current().data(show(one))
                left = None if left is None else left - 1
        if left != 0 and not _wait():
            break
    return Status.OK


def _json_line(recorded: Recorded[Alert]) -> str:
    from sealrun.ledger import alert_document

    document: dict[str, Any] = {"schema": console.SCHEMA, **alert_document(recorded)}
    return encoder.dumps(document, ensure_ascii=True)


def _line(recorded: Recorded[Alert]) -> str:
    alert = recorded.event
    seen = "" if alert.count == 1 else f", {alert.count} times"
    return (
        f"{local_time(alert.last_at or recorded.at, seconds=True)}  {visible(alert.id)}  "
        f"{visible(alert.phase)}  {visible(paths_in_words(alert))}: {visible(alert.change)}{seen}, "
        f"{visible(brief_writer(alert.writer))}"
    )


def _wait() -> bool:
    """Wait a little; False as soon as nobody reads our output any more."""
    watched = select.poll()
    watched.register(sys.stdout, 0)
    return not any(event & select.POLLERR for _, event in watched.poll(_EVERY))


# -- the chain -----------------------------------------------------------------------------------


def parse_anchor(text: str) -> Anchor:
    """Return the anchor that ``--head`` printed once.

    Raises:
        UsageError: it does not look like one.
    """
    from sealrun.ledger import Anchor

    match = _ANCHOR.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(
            f"--anchor {text!r} is no head of a chain",
            hint="Give what sealrun alerts --head printed earlier: a number, a colon, 64 digits.",
        )
    return Anchor(int(match[1]), match[2])


def _print_head(here: Here, *, json: bool) -> Status:
    screen = console.current()
    seq, digest = here.ledger.head() if here.ledger else (0, "")
    if json:
        screen.json({"head": {"seq": seq, "hash": digest} if seq else None})
    elif seq:
        screen.data(f"{seq}:{digest}")
    else:
        screen.say("nothing is on record yet, so there is no head to keep")
    return Status.OK


def _verify(here: Here, anchor: Anchor | None, *, json: bool) -> Status:
    report = here.ledger.verify_chain(anchor) if here.ledger else _nothing(anchor)
    # Of a broken chain the events may be unreadable, and the answer is no already.
    index = here.ledger.projections_hold() if here.ledger and report.sound else None
    screen = console.current()
    if json:
        screen.json(
            {
                "chain": {
                    "events": report.events,
                    "seq": report.seq,
                    "head": report.head or None,
                    "sound": report.sound,
                    "anchored": report.anchored,
                    "breaks": [
                        {"seq": one.seq, "what": one.what, "text": one.text}
                        for one in report.breaks
                    ],
                    "index": index,
                }
            }
        )
    else:
        for one in report.breaks:
            screen.data(f"event {one.seq} {one.what}: {one.text}")
        if index is False:
            screen.data("the index of the events was edited: lists of runs may be incomplete")
    screen.say(_judged(report, index=index), level=-1)
    return Status.OK if report.sound and index is not False else Status.REFUSED


def _nothing(anchor: Anchor | None) -> ChainReport:
    from sealrun.ledger.chain import verify

    return verify(b"", (), anchor)


def _judged(report: ChainReport, *, index: bool | None) -> str:
    if not report.sound:
        return (
            f"the record does NOT hold: {len(report.breaks)} breaks in a chain of "
            f"{report.events} events"
        )
    if index is False:
        return f"the chain of {report.events} events holds, its index does NOT"
    if report.anchored:
        return f"the chain of {report.events} events holds, and continues the anchor's"
    return (
        f"the chain of {report.events} events holds; whether it was cut at its end or written anew "
        f"as a whole, only --anchor could tell"
    )
