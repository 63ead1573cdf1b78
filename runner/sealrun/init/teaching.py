"""What a coding agent is told: the few commands, in a section of the file that it reads.

Rules that this module keeps:

- The section says how to run, how to read what comes back, and whose decision the rest is. It names
  no way around the guard and no way to approve or accept anything.
- It stands between two marks, so that it is put in once; the text around it stays as it is.
- It fits any agent: nothing in it depends on one agent's tools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sealrun.init.program import WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

BEGIN, END = "<!-- sealrun: begin -->", "<!-- sealrun: end -->"


def section(command: str, protected: Sequence[str]) -> str:
    """Return the section, with its marks and a final newline.

    Args:
        command: how an experiment is started without sealrun.
        protected: the files that the policy protects.
    """
    files = ", ".join(f"`{name}`" for name in protected)
    return f"""{BEGIN}
## Running experiments with sealrun

Experiments run exactly as committed, in a sealed container. Commit first, then run:

```sh
{WORDS.decode()}{command}
```

The output and the exit status are the experiment's own. Lines that begin with `[sealrun]` are sealrun's.

| exit status | what it means | what to do |
|---|---|---|
| 121, `refused` | nothing ran: the files differ from the commit, or the commit may not run as it is | do what the `[sealrun]` lines near the end of the log say: commit the change, or restore the file |
| 122, `aborted` | something changed the experiment while it ran | the result does not count; run it again |
| 124 | the deadline ended it | count it as a failed idea |
| 125 | trouble of the machine; the idea was not tested | run it again; when it stays, tell the human |

- `flagged` in a `[sealrun]` line: the reason stands beside it. The number counts only where the line says that
  it belongs to the commit.
- A cold start (125 with a hint) needs `sealrun warm` once, also after the lock has changed.
- `sealrun log` lists the runs, `sealrun show RUN` shows one, `sealrun alerts` lists what changed files.
- No network while it runs; new files go into the working directory or `/out`.
- {files}: a human decides about these. Leave them as they are, and tell the human when one stands in the way.
{END}
"""


def with_section(text: bytes | None, body: str) -> bytes:
    """Return a file with the section at its end, in the file's own line endings.

    Args:
        text: what the file holds; None where there is none.
    """
    if text is None:
        return body.encode()
    if BEGIN.encode() in text:
        return text
    newline = b"\r\n" if b"\r\n" in text else b"\n"
    gap = b"" if not text else newline if text.endswith(b"\n") else newline * 2
    return text + gap + body.encode().replace(b"\n", newline)


def skill(body: str) -> bytes:
    """Return a ``SKILL.md`` that holds the section alone (agentskills.io: name and description)."""
    head = (
        "---\n"
        "name: sealrun\n"
        "description: How to run experiments in this repository with sealrun and how to read what "
        "it answers. Use before any training run, and when a run was refused, flagged or aborted.\n"
        "---\n\n"
    )
    return (head + body).encode()
