"""Provenance: signed statements about runs, how they are checked, and bundles that carry runs.

Rules that this package keeps:

- What a statement says is a pure function of the ledger's events and of digests that anybody can
  take again; nothing in it is a claim of the experiment about itself, but where it says so.
- Only runs of the own ledger are signed; what came in a bundle keeps its maker's signature.
- The cryptography is securesystemslib's, imported when a signature is made or checked.
"""

from __future__ import annotations

from sealrun.provenance.signing import sign_run

__all__ = ["sign_run"]
