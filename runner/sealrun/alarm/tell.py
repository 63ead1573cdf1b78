"""Tells somebody: keeps the notice, and sees to it that a sender runs.

Rules that this module keeps:

- Telling never raises, never waits for a network and never fails a run: what goes wrong comes back as
  a sentence.
- Where nobody configured a channel, nothing is written and nothing is started.
- The sender inherits no descriptor, no terminal and no process group; of the environment only what
  it needs to find its files, and the variables that ``alarm.toml`` names.
- Nothing heavy is imported: every run comes through here.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from sealrun import detached, state
from sealrun.alarm import paging
from sealrun.alarm.notice import Kind, Notice
from sealrun.alarm.wording import Ended, happening_of, notices_of, page_of
from sealrun.errors import Fault, Refused, SealrunError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sealrun.alarm.spool import Spool
    from sealrun.course import Finished
    from sealrun.ledger import Alert
    from sealrun.state import Places

#: Name of the user's configuration.
FILE = "alarm.toml"
_LOG = "sender.log"
#: Repositories whose refusals and alerts are remembered.
_REPOSITORIES = 200


class Alarm:
    """Whoever is to be told, as the user configured it.

    Args:
        directory: of the spool.
        file: the configuration.
    """

    def __init__(self, directory: Path, file: Path) -> None:
        self.directory, self.file = directory, file

    @classmethod
    def of_user(cls, places: Places) -> Alarm:
        """Return the calling user's alarm."""
        return cls(places.state / "alarm", state.configuration() / FILE)

    def ended(self, ended: Ended) -> str | None:
        """Tell how a run ended, and page where trouble repeats.

        Returns:
            What went wrong with the telling, in a sentence; None where all is well.
        """
        return self._safely(lambda: self._ended(ended))

    def tell(self, *told: Notice) -> str | None:
        """Keep notices and have them delivered; see ``ended`` for what comes back."""
        return self._safely(lambda: self._tell(told))

    def _safely(self, action: Callable[[], str | None]) -> str | None:
        try:
            return action() if self._is_configured() else None
        except SealrunError as error:
            return f"nobody could be told: {error.message}"
        except OSError as error:
            return f"nobody could be told: {error.strerror or error}"
        except Exception as error:  # noqa: BLE001 - an alarm that fails must not fail a run
            return f"nobody could be told: unforeseen {type(error).__name__}"

    def _is_configured(self) -> bool:
        return self.file.is_file()

    def _ended(self, ended: Ended) -> str | None:
        from sealrun.ledger.ulid import new_ulid

        notices = notices_of(ended, new_ulid())
        pages = self._pages(ended)
        last = notices[0] if notices else None
        told = (*notices, *(page_of(page, last, new_ulid()) for page in pages if last is not None))
        return self._tell(told)

    def _pages(self, ended: Ended) -> Sequence[paging.Page]:
        happening = happening_of(ended)
        spool = self._spool()
        tallies = paging.of_document(spool.tallies())
        if not happening.causes and not happening.refused:
            quiet = ended.workspace not in tallies or not tallies[ended.workspace].refusals
            if quiet or happening.refused is None:
                return ()
        # A lock that is stuck costs this page, never the notice.
        with contextlib.suppress(OSError), spool.counting() as write:
            tallies = paging.of_document(spool.tallies())
            before = tallies.pop(ended.workspace, paging.Tally())
            after, pages = paging.decide(before, happening)
            tallies[ended.workspace] = after
            write(paging.document(dict(list(tallies.items())[-_REPOSITORIES:])))
            return pages
        return ()

    def _tell(self, told: Sequence[Notice]) -> str | None:
        spool = self._spool()
        full = sum(1 for notice in told if not spool.put(notice))
        if not spool.count():
            return None
        from sealrun.alarm import config

        try:
            channels = config.read(self.file)
        except config.AlarmError as error:
            return f"nobody is told until it is mended: {error.message}"
        if not spool.has_sender():
            detached.start(
                "sealrun.alarm",
                *(self.directory, self.file),
                log=self.directory / _LOG,
                variables=config.variables(channels),
                path="/usr/bin:/bin",
            )
        troubles = [
            f"{one.name} is not told: {why}"
            for one in channels
            if (why := config.trouble(one, os.environ))
        ]
        if full:
            troubles.append(f"too many notices wait to be delivered: {full} more were dropped")
        return "; ".join(troubles) or None

    def _spool(self) -> Spool:
        from sealrun.alarm.spool import Spool

        return Spool(self.directory)


def of_finished(finished: Finished, workspace: Path, alerts: Sequence[Alert] = ()) -> Ended:
    """Return a judged run as the alarm needs to know it.

    Args:
        finished: the run.
        workspace: that it was started in.
        alerts: of this run, and those from before it that it found.
    """
    from sealrun.record import judgement

    return Ended(
        workspace=os.fspath(workspace),
        host=os.uname().nodename,
        run=finished.run_id,
        commit=finished.commit,
        at=time.time(),
        judgement=judgement(finished.verdict, finished.policy.policy),
        harmless=finished.verdict.harmless,
        alerts=alerts,
    )


def of_error(error: SealrunError, run: str, workspace: Path) -> Ended | None:
    """Return a run that an error ended; None where nobody needs to be told.

    Whoever interrupts a run or mistypes a command knows of it.

    Args:
        error: what ended it.
        run: its id.
        workspace: that it was started in.
    """
    from sealrun.ledger import Judgement

    if not isinstance(error, Fault | Refused):
        return None
    return Ended(
        workspace=os.fspath(workspace),
        host=os.uname().nodename,
        run=run,
        at=time.time(),
        judgement=Judgement(kind="refused") if isinstance(error, Refused) else None,
        fault=error.message,
    )


def trial(host: str, at: float) -> Notice:
    """Return a notice that says that the alarm works."""
    from sealrun.ledger.ulid import new_ulid

    return Notice(
        id=new_ulid(),
        kind=Kind.TEST,
        at=at,
        title="sealrun: a test",
        text=f"sealrun alarm test on {host}: this channel works\nnext: nothing needs doing",
        host=host,
    )
