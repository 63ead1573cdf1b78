"""Whose change is it: the loop's own, foreign, or nobody knows. Pure; no IO.

Rules that this module keeps:

- The loop's own is what descends from a session's leader, and nothing else: without a session nobody
  is taken for the loop.
- A program that the policy names is foreign whoever started it: a formatter that the agent's own hook
  starts is the classic culprit. Of nested sessions the outermost counts, so that no wrapping excuses it.
- Foreign by descent is who provably descends from no session that was under way. Where ``/proc``
  alone named a parent, that parent may be the reaper of an orphan; such a writer is unknown.
- The answer says why in words that stand in an alert.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sealrun.guard.mutations import Mutation, Writer
    from sealrun.guard.processes import Process
    from sealrun.ownership.sessions import Session

Category = Literal["loop", "foreign", "unknown"]

#: How a writer was found, where its process is known.
_KNOWN = ("live", "cached", "partial")
#: The pid that adopts whoever nobody else does (pid_namespaces(7)).
_INIT = 1


@dataclass(frozen=True)
class Whose:
    """Whose a change is.

    Attributes:
        category: ``loop``, ``foreign`` or ``unknown``.
        why: for a reader of the record, one clause.
    """

    category: Category
    why: str


def classify(
    writer: Writer,
    sessions: Iterable[Session],
    tools: Iterable[str],
    boot: str,
    *,
    at: float | None = None,
) -> Whose:
    """Say whose the changes of one writer are.

    Args:
        writer: as the guard found it.
        sessions: all that are known, ended ones too.
        tools: names of programs that are foreign whoever starts them.
        boot: id of the boot in which the change was made.
        at: wall time of the change in seconds; None for now: only sessions that have not ended count
            as under way.
    """
    if writer.process is None or writer.how not in _KNOWN:
        return Whose("unknown", writer.why or "nobody could be seen to write")
    line = (writer.process, *writer.parents)
    of_boot = [session for session in sessions if session.boot == boot]
    leader = _leader(line, of_boot)
    names = frozenset(map(_plain, tools))
    for process in line if leader is None else line[: leader[0]]:
        tool = _tool(process, names)
        if tool is not None:
            return Whose("foreign", f"{tool} is named as foreign in the policy")
    if leader is not None:
        return Whose("loop", f"it descends from session {leader[1].id}")
    under_way = [session for session in of_boot if _was_under_way(session, at)]
    if not under_way:
        return Whose("unknown", "no session was under way")
    doubt = _doubt(writer, line, under_way)
    if doubt is not None:
        return Whose("unknown", doubt)
    return Whose("foreign", "it descends from no session that was under way")


def of_mutation(mutation: Mutation, sessions: Iterable[Session], tools: Iterable[str]) -> Whose:
    """Say whose a mutation is, with those who may have made it in its writer's place.

    Where several processes wrote at that time and their order is not certain, a category counts
    only if it is that of each of them.
    """
    writer = mutation.writer
    moment = mutation.first if mutation.count == 1 else mutation.last
    sessions, tools = tuple(sessions), tuple(tools)
    found = classify(writer, sessions, tools, moment.boot, at=moment.wall)
    if writer.how in ("live", "cached"):
        return found
    for other in mutation.candidates:
        if classify(other, sessions, tools, moment.boot, at=moment.wall).category != found.category:
            return Whose("unknown", "others wrote at about that time, and not all are the loop's")
    return found


def _leader(line: tuple[Process, ...], sessions: list[Session]) -> tuple[int, Session] | None:
    """Return the outermost session leader in a line, with its position."""
    leaders = {(session.pid, session.started): session for session in sessions}
    for position in reversed(range(len(line))):
        process = line[position]
        session = None if process.started is None else leaders.get((process.pid, process.started))
        if session is not None:
            return position, session
    return None


def _was_under_way(session: Session, at: float | None) -> bool:
    if at is None:
        return session.ended is None
    return session.begun <= at and (session.ended is None or at <= session.ended)


def _doubt(writer: Writer, line: tuple[Process, ...], sessions: list[Session]) -> str | None:
    """Say why a writer may descend from a session after all; None if it cannot."""
    if writer.how == "partial":
        return writer.why or "not everything is known of it"
    if line[-1].pid != _INIT:
        return "its parents are not known up to the first process"
    for session in sessions:
        for process, above in zip(line, (*line[1:], None), strict=True):
            if process.pid == session.pid and process.started is None:
                return f"it may descend from session {session.id}"
            if process.started is not None and process.started < session.started:
                break  # older than the leader, and so are its parents: none of them descends from it
            adopted = above is not None and above.pid in (_INIT, *session.above)
            if adopted and not process.forked:
                return f"it may be an orphan of session {session.id}"
    return None


# -- programs by name --------------------------------------------------------------------------------

_VERSION = re.compile(r"[-.]?\d+(\.\d+)*$")
_EXTENSION = re.compile(r"\.(py|pyz|pyw|js|cjs|mjs|ts|rb|pl|sh|bash|php|phar|exe)$")
#: One executable with many names; the name that it was called by counts.
_MANY_NAMES = frozenset({"busybox", "toybox", "coreutils"})
#: Files that stand for the directory that they lie in.
_FOR_DIRECTORY = frozenset({"--main--", "index", "cli", "main"})


@dataclass(frozen=True)
class _Interpreter:
    """How an interpreter's command line names what it runs.

    Attributes:
        inline: letters of options after which the program itself is an argument.
        module: letter of the option that names a module.
        values: letters of options whose value follows, in the same argument or in the next.
        attached: letters of options whose value, if any, is the rest of the argument.
        words: long options whose value is the next argument.
        verbs: first words that are no file.
    """

    inline: str = ""
    module: str = ""
    values: str = ""
    attached: str = ""
    words: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()


_SHELL = _Interpreter(inline="c", values="oO", words=("--rcfile", "--init-file"))
_NODE = _Interpreter(
    inline="ep",
    values="rC",
    words=(
        *("--require", "--import", "--loader", "--experimental-loader", "--conditions"),
        *("--env-file", "--icu-data-dir", "--title"),
    ),
)
#: From the manuals of each: python(1), node(1), ruby(1), perlrun(1), bash(1).
_INTERPRETERS: tuple[tuple[re.Pattern[str], _Interpreter], ...] = (
    (
        re.compile(r"(python|pypy)[\d.]*t?d?"),
        _Interpreter("c", "m", "WX", words=("--check-hash-based-pycs",)),
    ),
    (re.compile(r"node(js)?[\d.-]*"), _NODE),
    (re.compile(r"ruby[\d.]*"), _Interpreter("e", values="IrCEK", attached="0FTWxi")),
    (re.compile(r"perl[\d.]*"), _Interpreter("eE", values="I", attached="0CDFMVdilmx")),
    (re.compile(r"(ba|da|z|k|mk|a|fi)?sh"), _SHELL),
    (re.compile(r"bun|deno|php[\d.]*|lua[\d.]*|Rscript"), _Interpreter(verbs=("run", "x"))),
)
_INLINE_WORDS = frozenset({"--eval", "--print", "--command"})


def _tool(process: Process, names: frozenset[str]) -> str | None:
    """Return the name by which a process is a named tool; None if it is none."""
    for name in programs(process):
        for known in (name, _VERSION.sub("", name)):
            if known in names:
                return known
    return None


def programs(process: Process) -> Iterator[str]:
    """Yield the names of what a process runs: its executable, and a script or module in it."""
    arguments = process.cmdline or ()
    called = _name(arguments[0]) if arguments else ""
    name = _name((process.exe or "").removesuffix(" (deleted)")) or called
    if not name:
        return
    yield name
    if name in _MANY_NAMES:
        name = called
        yield name
    for pattern, interpreter in _INTERPRETERS:
        if pattern.fullmatch(name):
            yield from _script(interpreter, arguments[1:])
            return


def _script(interpreter: _Interpreter, arguments: tuple[str, ...]) -> Iterator[str]:
    waiting = list(reversed(arguments))
    while waiting:
        argument = waiting.pop()
        if argument == "--":
            continue
        takes, rest = _option(interpreter, argument)
        following = waiting.pop() if takes in ("value", "module") and not rest and waiting else rest
        if takes == "module":
            yield _plain(following.partition(".")[0])
        elif takes == "file":
            yield from _names_of_file(argument)
        if takes in ("module", "file", "inline"):
            return


def _option(interpreter: _Interpreter, argument: str) -> tuple[str, str]:
    """Say what an argument is and what of its value it holds itself.

    Returns:
        ``file``, ``inline`` (the program is an argument or comes from a pipe), ``module``, ``value``
        (of an option), or nothing of interest.
    """
    if argument == "-" or argument in _INLINE_WORDS:
        return "inline", ""
    if argument.startswith("--"):
        return ("value" if argument in interpreter.words else ""), ""
    if not argument.startswith(("-", "+")):
        return ("" if argument in interpreter.verbs else "file"), ""
    for position, letter in enumerate(argument[1:], 2):
        for meaning, letters in (
            ("inline", interpreter.inline),
            ("module", interpreter.module),
            ("value", interpreter.values),
            ("", interpreter.attached),
        ):
            if letter in letters:
                return meaning, argument[position:]
    return "", ""


def _names_of_file(path: str) -> Iterator[str]:
    parts = path.split("/")
    name = _name(path)
    yield name
    if name in _FOR_DIRECTORY and parts[1:]:
        yield _plain(parts[-2])
    if "node_modules" in parts[:-1]:
        at = len(parts) - 2 - parts[:-1][::-1].index("node_modules")
        below = parts[at + 1 :]
        yield _plain(below[1] if below[0].startswith("@") and below[1:] else below[0])


def _name(path: str) -> str:
    return _plain(_EXTENSION.sub("", path.rpartition("/")[2]))


def _plain(name: str) -> str:
    """Return a name as it is compared: a module spells with underscores what a program does not."""
    return name.replace("_", "-")
