"""Run experiments exactly as committed, and know what changed behind the loop's back.

Rules of this module: it imports nothing, so that ``import sealrun`` costs nothing.
"""

__version__ = "0.1.0"
