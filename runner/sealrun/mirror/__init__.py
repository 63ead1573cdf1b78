"""The record outlives the machine: after each run it goes to a git remote or a directory.

Rules that this package keeps:

- Mirroring never holds up and never fails a run (``after``); a process that nobody waits for does it
  (``background``), and what a killed one left undone the next one does (``memory``).
- Where the record goes is the user's own choice (``config``), never the commit's, and no secret of
  it is in any message, record, log or list of processes.
- A mirror only grows: a chain that was cut or rewritten here is said and never written over what
  stands there (``step``).
- What a mirror holds is named by digests that hang on one head (``format``, ``collect``), whatever
  kind of place it is (``line``, ``directory``, ``gitline``).
- Whoever restores believes nothing that is not checked (``restore``).
"""

from sealrun.mirror.after import after_run

__all__ = ["after_run"]
