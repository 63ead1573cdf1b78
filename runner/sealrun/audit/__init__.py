"""Judging a night that is over: one that ran without us, and the runs of our own ledger.

``table`` reads a loop's results, ``history`` what the repository still knows, ``logs`` what was
printed; ``decisions``, ``lineage``, ``printed`` and ``suspects`` hold them against each other, and
``night`` puts it together. ``findings`` is the closed set of what can be found.
"""
