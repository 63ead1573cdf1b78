"""The text of the git hooks that we install: ours first, then the one that was there.

Rules that this module keeps:

- The hook that was there runs as before: with its name, arguments, standard streams, environment
  and status. Scripts that look for their neighbours by ``$0`` find them (husky's, pre-commit's).
- Nothing of ours can fail a commit, or print.
- A hook of ours is recognised by its first lines; anything else is somebody else's.
"""

from __future__ import annotations

import re
import shlex

#: The hooks that we install, and what is recorded before and after the hook that was there.
MOMENTS = {"pre-commit": ("before", "after"), "post-commit": ("committed", None)}
#: What the hook that was there is called meanwhile, beside its place.
KEPT = ".before-sealrun"
#: What the pre-commit framework calls a hook that was there before its own.
LEGACY = ".legacy"

_MARK = "# Installed by sealrun (sealrun hook install git)."
_SHELL = re.compile(
    rb"#!\s*(?:/\S*/env\s+)?(?:/\S*/)?(sh|bash|dash|zsh|ksh)[ \t]*(-[a-zA-Z]+)?[ \t]*\r?\n"
)


def is_ours(text: bytes) -> bool:
    """Return whether a hook is one that we installed."""
    return text.startswith(f"#!/bin/sh\n{_MARK}\n".encode())


def script(name: str, entry: list[str], kept: str | None, original: bytes) -> str:
    """Return the text of a hook.

    Args:
        name: ``pre-commit`` or ``post-commit``.
        entry: the command that records, without what a moment adds.
        kept: full path of the hook that was there; None where there was none.
        original: its text.
    """
    before, after = MOMENTS[name]
    lines = ["#!/bin/sh", _MARK, "# sealrun hook uninstall git restores what was here.", ""]
    lines.append(_recording(entry, before))
    lines.append("status=0")
    if kept is not None:
        lines += [
            f"if [ -x {shlex.quote(kept)} ]; then",
            f"    {_call(kept, original)} || status=$?",
            "fi",
        ]
        if after is not None:
            lines.append(_recording(entry, after))
    lines += ['exit "$status"', ""]
    return "\n".join(lines)


def _recording(entry: list[str], moment: str) -> str:
    command = shlex.join([*entry, moment])
    return f'{command} "$PPID" </dev/null >/dev/null 2>&1 || :'


def _call(kept: str, original: bytes) -> str:
    shell = _SHELL.match(original)
    if shell is None:
        return f'{shlex.quote(kept)} "$@"'
    # Read into a shell whose $0 is the hook's own name.
    flags = f" {shell[2].decode()}" if shell[2] else ""
    inner = shlex.quote(f". {shlex.quote(kept)}")
    return f'{shell[1].decode()}{flags} -c {inner} "$0" "$@"'
