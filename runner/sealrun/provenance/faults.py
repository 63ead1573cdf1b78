"""What can be wrong with keys, statements and bundles.

Rules: what somebody else made wrongly is a refusal (121); what is ours to repair is a fault (125).
"""

from __future__ import annotations

from sealrun.errors import Fault, Refused


class KeyFault(Fault):
    """A key is missing, unreadable, or not as private as it must be."""


class BadEnvelope(Refused):
    """Something is no signed statement of ours, or its signature does not hold."""


class BadBundle(Refused):
    """A bundle is not whole, not what it says, or would do harm; the message says where."""
