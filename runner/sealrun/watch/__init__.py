"""A guard that stands alone, for loops without containers: ``sealrun watch``.

Rules that this package keeps:

- Content decides: everything is compared at the start and at the end, whatever events said.
- Where nothing seals the code, what could be imported or read as configuration counts too.
- The guard's own core does the watching (``sealrun.guard.core``), in this process; what is added
  here is what to expect, and what else to look at.
"""
