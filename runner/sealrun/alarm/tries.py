"""Makes each try in a process of its own, so that none can hold up the others.

Rules that this module keeps:

- The kernel ends a try that takes too long (setitimer(2)): a server that never answers, a name that
  is never resolved and a library that hangs all come to the same end.
- A try holds no lock of its parent's; when the sender is killed the try ends by its own timer.
- What a try says comes back over a pipe and is read as what it is: a few words from ourselves.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sealrun.alarm.channels import Failed, deliver

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sealrun.alarm.config import Told
    from sealrun.alarm.wording import Message

#: Seconds beyond a channel's own timeout: process, imports, certificates.
_GRACE = 5.0
#: Bytes of an answer: less than a pipe takes at once (pipe(7), PIPE_BUF).
_ANSWER = 4096
#: What a try keeps of its environment.
_KEPT = {"HOME", "LC_ALL", "PATH", "TMPDIR", "TZ"}


@dataclass(frozen=True)
class Result:
    """How a try ended.

    Attributes:
        why: what was wrong; None where the message was taken.
        wish: seconds that the receiver asks us to wait.
        rejected: the receiver refuses this message and would take another.
    """

    why: str | None = None
    wish: float | None = None
    rejected: bool = False


class Try:
    """A try under way."""

    def __init__(
        self,
        told: Told,
        message: Message,
        environment: Mapping[str, str],
        close: Iterable[int] = (),
    ) -> None:
        self.message = message
        self._timeout = told.sending.timeout
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            _live(told, message, environment, theirs, (ours, *close))
        os.close(theirs)
        self._pid, self._pipe = pid, ours

    def fileno(self) -> int:
        """Become readable when the try has ended."""
        return self._pipe

    def result(self) -> Result:
        """Wait for the end and return how it was."""
        said = b""
        try:
            while part := os.read(self._pipe, _ANSWER):
                said += part
        finally:
            os.close(self._pipe)
            _, status = os.waitpid(self._pid, 0)
        if said:
            answer = json.loads(said)
            return Result(answer["why"], answer["wish"], answer["rejected"])
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            return Result(f"it does not answer within {self._timeout:g} s")
        return Result("the try to deliver it ended unexpectedly")


def wait(tries: Iterable[Try], seconds: float) -> list[Try]:
    """Return the tries that have ended, after at most that long."""
    return select.select(list(tries), [], [], max(seconds, 0.0))[0]


def _live(
    told: Told,
    message: Message,
    environment: Mapping[str, str],
    pipe: int,
    close: Iterable[int],
) -> None:
    """Be the process of a try; never return."""
    status = 1
    try:
        for descriptor in close:
            os.close(descriptor)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, told.sending.timeout + _GRACE)
        # Libraries log URLs, and heed variables that alarm.toml does not name.
        logging.disable(logging.CRITICAL)
        variables = dict(environment)
        for name in set(os.environ) - _KEPT:
            del os.environ[name]
        answer = Result()
        try:
            deliver(told, message, variables)
        except Failed as failed:
            answer = Result(failed.why[:1000], failed.wish, failed.rejected)
        except Exception as error:  # noqa: BLE001 - a defect in one channel is that channel's alone
            answer = Result(f"unforeseen {type(error).__name__}")
        said = {"why": answer.why, "wish": answer.wish, "rejected": answer.rejected}
        os.write(pipe, json.dumps(said).encode("ascii")[:_ANSWER])
        status = 0
    finally:
        # Whatever went wrong, nothing of the parent's must be done twice.
        os._exit(status)
