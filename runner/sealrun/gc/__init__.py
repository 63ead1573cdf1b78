"""Frees disk: what no recorded run needs and what can be made again cheaply, and only what is ours.

``keeping`` is how everybody else says that stored layers are being used; ``needed`` reads from the
ledgers what has to stay; ``findings`` looks for what does not; ``images`` does both for an engine;
``sweep`` removes.
"""
