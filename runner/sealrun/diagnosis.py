"""Why a failed experiment may have met the sandbox: a sentence about what it is allowed.

Rules that this module keeps:

- Pure: the end of the output goes in, a sentence comes out. The output is hostile; it chooses one of
  our sentences and nothing of it is repeated but a path, which is bounded and escaped when printed.
- A sentence says what holds and which key of the policy says so; never how to get around it.
"""

from __future__ import annotations

import re

#: Bytes at the end of the output that are looked at.
TAIL = 16 << 10
_PATH_LIMIT = 200

_DENIED = re.compile(
    rb"(?:Permission denied|Read-only file system|Operation not permitted)"
    rb"(?:: '([^'\n]{1,200})'|[^\n]{0,200})"
)
_RULES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (
        re.compile(rb"No space left on device"),
        (
            "scratch space is bounded by [sandbox] tmp, /dev/shm by [sandbox] shm, new files by "
            "[sandbox] outputs"
        ),
    ),
    (
        re.compile(
            rb"Temporary failure in name resolution|Network is unreachable|"
            rb"Name or service not known|OfflineModeIsEnabled|LocalEntryNotFoundError"
        ),
        (
            "experiments run without network ([sandbox] network); data comes in by [[data]], packages "
            "by the commit's lock"
        ),
    ),
    (
        re.compile(rb"ModuleNotFoundError: No module named|command not found"),
        "packages come from the commit's lock file; sealrun show lists what the image holds",
    ),
    (
        re.compile(rb"Resource temporarily unavailable|can't start new thread"),
        "processes and threads are bounded by [sandbox] pids",
    ),
    (
        re.compile(rb"Too many open files"),
        "descriptors are bounded by [sandbox] open_files",
    ),
    (
        re.compile(rb"File size limit exceeded|File too large"),
        "the size of one file is bounded by [sandbox] file_size",
    ),
)


def explain(tail: bytes) -> str | None:
    """Return a sentence about the sandbox that fits the end of a failed run's output.

    Args:
        tail: the last bytes of the output, at most ``TAIL``.
    """
    refusals = list(_DENIED.finditer(tail))
    if refusals:
        denied = refusals[-1]
        path = (denied[1] or b"").decode("utf-8", "replace")[:_PATH_LIMIT]
        what = f"{path!r} could not be written" if path else "a write was refused"
        return (
            f"{what}: committed files and the system are read-only; new files can be made beside "
            "the committed ones ([sandbox] workdir), in /out, in $HOME and in /tmp"
        )
    for pattern, sentence in _RULES:
        if pattern.search(tail):
            return sentence
    return None
