"""Where a foreign change came from, and what keeps it from happening again. Pure.

Rules that this module keeps:

- Only what the record names is said: a writer that is not known gets no origin and no name.
- A cure is for the human who owns the machine. It keeps the writer away from the files; it never
  keeps the guard away from the writer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.guard.processes import Process as Seen
from sealrun.ownership import whose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sealrun.ledger import Process, WriterFacts

_EDITORS = frozenset(
    {
        *(
            "code",
            "code-insiders",
            "codium",
            "vscodium",
            "code-server",
            "cursor",
            "windsurf",
            "zed",
        ),
        *("vim", "nvim", "emacs", "subl", "sublime-text", "kate", "helix", "hx", "nano", "micro"),
        *("pycharm", "idea", "webstorm", "clion", "goland", "rider", "jetbrains-gateway"),
    }
)
_AGENTS = frozenset(
    {"claude", "claude-code", "codex", "aider", "gemini", "gemini-cli", "opencode", "goose"}
)
_HOOKS = frozenset({"pre-commit", "lint-staged", "husky", "lefthook", "overcommit"})
_CLOCKS = frozenset({"cron", "crond", "anacron", "atd", "fcron"})
_WATCHERS = frozenset(
    {"entr", "watchexec", "nodemon", "watchmedo", "chokidar", "inotifywait", "fswatch", "onchange"}
)
_SYNC = frozenset(
    {"rsync", "rclone", "syncthing", "unison", "lsyncd", "mutagen", "osync", "scp", "sftp-server"}
)
#: How a program that an editor keeps running for its language is called.
_SERVER = re.compile(r"(.*[-_])?(lsp|langserver|language-server)(-server)?|pylsp|jedi-lsp")
#: Characters of a path in a sentence.
_SHOWN = 120


@dataclass(frozen=True)
class Origin:
    """What a writer belongs to.

    Attributes:
        kind: ``server`` (of an editor), ``editor``, ``commit-hook``, ``agent``, ``clock``,
            ``watcher``.
        text: for a sentence after "from".
        process: what it was told by: the writer or one of its parents.
    """

    kind: str
    text: str
    process: Process


def program(process: Process | None) -> str | None:
    """Return what a process runs, by one word: of an interpreter its script or module."""
    if process is None:
        return None
    names = list(whose.programs(Seen(process.pid or 0, process.exe, process.cmdline)))
    return names[-1] if names else None


def origin(writer: WriterFacts) -> Origin | None:
    """Return what a writer belongs to, as far as it and its parents tell."""
    if writer.process is None:
        return None
    line = (writer.process, *writer.parents)
    for process in line:
        if _serves(process):
            return Origin("server", "the editor's server", process)
    for process in line:
        name = program(process)
        for kind, names, text in (
            ("commit-hook", _HOOKS, "a commit hook"),
            ("watcher", _WATCHERS, f"the file watcher {name}"),
            ("editor", _EDITORS, f"the editor {name}"),
            ("agent", _AGENTS, f"a hook or a command of {name}"),
            ("clock", _CLOCKS, name or ""),
        ):
            if name in names:
                return Origin(kind, text, process)
        if name == "git" and "commit" in process.cmdline:
            return Origin("commit-hook", "a commit hook", process)
    return None


def _serves(process: Process) -> bool:
    name = program(process)
    arguments = process.cmdline[1:]
    return (
        "server" in arguments[:3]
        or "--stdio" in arguments
        or "--lsp" in arguments
        or (name is not None and _SERVER.fullmatch(name) is not None)
    )


def named(writer: WriterFacts) -> str | None:
    """Return ``ruff from the editor's server``; None where nobody can be named."""
    name = program(writer.process)
    if name is None:
        return None
    where = origin(writer)
    return name if where is None else f"{name} from {where.text}"


def cure(writer: WriterFacts, paths: Sequence[str]) -> str:
    """Return what keeps a change from coming back, in a sentence or two."""
    return " ".join(_advice(writer, paths))


def _advice(writer: WriterFacts, paths: Sequence[str]) -> Iterator[str]:
    name = program(writer.process)
    if name is None:
        yield (
            "Who wrote is not known: sealrun doctor lists what rewrites files on this machine, and "
            "what it takes for writers to be named."
        )
        return
    where = origin(writer)
    if where is not None:
        yield _of_origin(where, name)
    elif name in _SYNC:
        yield f"Keep this workspace out of what {name} copies, or stop that job."
    elif writer.parents and (parent := program(writer.parents[0])):
        pid = writer.parents[0].pid
        yield f"Find out why {parent} (pid {pid}) starts {name}, and keep the files out of it."
    else:
        yield f"Find out what starts {name}, and keep the files out of it."
    if exclude := _exclude(name, paths):
        yield exclude


def _of_origin(where: Origin, name: str) -> str:
    pid = where.process.pid
    return {
        "server": f"Switch off formatting on save for this workspace in the editor behind pid {pid}.",
        "editor": f"Switch off formatting on save for this workspace in the editor, pid {pid}.",
        "commit-hook": f"Exclude the files from the commit hook that runs {name}.",
        "agent": f"Leave the files out of the agent's hook that runs {name}.",
        "clock": f"Find {name} in the timetable of {where.text}, and keep this workspace out of it.",
        "watcher": f"Stop the watcher, pid {pid}, or keep this workspace out of it.",
    }[where.kind]


def _exclude(name: str, paths: Iterable[str]) -> str | None:
    from sealrun.doctor.formatters import FORMATTERS

    for formatter in FORMATTERS:
        if formatter.program == name:
            path = next(iter(paths), "PATH")[:_SHOWN]
            return f"Or exclude them: {formatter.exclude.replace('PATH', path)}."
    return None
