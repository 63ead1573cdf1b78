"""What other programs run: hooks of coding agents and of git.

Rules that this package keeps:

- Leaves: nothing of the core imports them.
- What runs inside an agent's tool call (``entry``, ``recording``, ``place``, ``claude_code``,
  ``codex``, ``patch``, ``git``) imports only cheap parts of the standard library, prints nothing,
  fails nothing and ends within milliseconds. What installs it (``agents``,
  ``settings``, ``install``, ``git_hooks``) is run by a human and reports like the rest of the program.
"""
