"""Tells what is protected on this machine and in this repository, and how to repair the rest.

Rules that this package keeps:

- A check is a record: it found something, graded it, and says what to do. Checks print nothing.
- Looking changes nothing: no configuration is written, no repository code runs on the host.
- What could not be looked at is said (``skipped``), never passed over.
- Nothing is claimed that the code does not do: a capability of a later version is named as that.
"""

from sealrun.doctor.examine import examine
from sealrun.doctor.model import Check, Diagnosis, Grade

__all__ = ["Check", "Diagnosis", "Grade", "examine"]
