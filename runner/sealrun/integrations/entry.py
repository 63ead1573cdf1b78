"""The program that an agent or git starts as a hook: ``python -I -S entry.py WHO STATE [...]``.

Rules that this module keeps:

- It always ends with status 0 and prints nothing: status 2 would block the agent's tool, and what a
  hook prints may be read by the model.
- It ends by itself: an alarm bounds it, whatever it waits for.
- It does almost nothing here: a script is compiled at each start, a module is not.
"""

import os
import sys

#: Seconds after which the hook gives up; an edit never waits longer.
_PATIENCE = 3.0


def _give_up(number: int, frame: object) -> None:  # noqa: ARG001 - signal's signature
    os._exit(0)


def main() -> None:
    """Record what the caller's payload says; see ``recording``."""
    try:
        import signal

        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        # Last on the path: nothing beside the package can stand in for the standard library.
        here = os.path.abspath(__file__)  # noqa: PTH100 - pathlib costs 4 ms
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))  # noqa: PTH120 - likewise
        from sealrun.integrations import recording

        recording.record(sys.argv[1:])
    except BaseException:  # noqa: BLE001, S110 - nothing may reach the agent
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
