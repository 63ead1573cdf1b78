"""Bundles: runs in one file, with everything that checks them and runs them again elsewhere.

Rules that this package keeps:

- A bundle is made of named, hashed contents; nothing in it says where anything is written.
- Whoever made a bundle is hostile until its signatures held; then it is still only what its maker
  says. What was refused is named with its reason.
- Imported runs stand beside the own ledger, never in it, and are shown as imported.
"""

from __future__ import annotations
