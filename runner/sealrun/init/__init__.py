"""Making an existing repository ready for sealrun: recognised, shown as one diff, undone whole.

Rules that this package keeps:

- What is recognised and what is proposed are pure decisions over what was looked at (``shape``,
  ``draft``, ``program``, ``teaching``, ``proposal``); ``look`` reads, ``written`` writes.
- Nothing is written that the diff did not show, nothing is staged or committed, and what git
  ignores is not touched.
- A policy that is there is a human's: it is never overwritten.
"""
