"""Tells somebody what happened, also when an outside agent drives and nobody looks.

Rules that this package keeps:

- Telling never holds up and never fails a run (``tell``); a notice outlives whoever told it
  (``spool``) and is delivered by a process that nobody waits for (``sender``).
- What is told, what pages and when a dead channel is tried again are pure decisions (``wording``,
  ``paging``, ``schedule``).
- Who is told is the user's own choice (``config``), never the commit's, and no secret of it is in
  any message, record, log or list of processes.
- A channel is one function (``channels``); another kind of channel is another one.
"""

from sealrun.alarm.notice import Kind, Notice
from sealrun.alarm.tell import Alarm, of_error, of_finished
from sealrun.alarm.wording import Ended, notices_of

__all__ = ["Alarm", "Ended", "Kind", "Notice", "notices_of", "of_error", "of_finished"]
