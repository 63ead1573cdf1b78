"""What others do to a container through the engine.

Rules that this module keeps:

- Observed from the container's creation on; the engine replays what happened before we listened.
- Every call of ours that makes an event is announced before it is made; whatever exceeds what was
  announced is somebody else's, and whatever we do not know is counted as interference.
- An engine reports events late. ``settle`` waits for one that we cause on purpose, so that none
  that came before it is missed. A stream that broke is said, never hidden.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from sealrun.sandbox.protocol import Interference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: Container events that say how it goes or that somebody looked, and change nothing.
HARMLESS = frozenset({"die", "oom", "top", "export", "exec_die", "exec_detach", "health_status"})
#: What may happen to a container of ours before anybody else knows of it.
OWN = {"create": 1, "attach": 1, "start": 1}
#: Seconds to wait for an event that the engine owes us; and, where it owes none, for what it reports
#: late, as of a container that somebody removed.
_PATIENCE, _LATE = 30.0, 2.0
#: Seconds between two tries to make it report.
_AGAIN = 0.1
#: Attributes worth keeping; the rest repeats labels.
_KEPT = frozenset({"execID", "signal", "oldName", "exitCode", "container", "name", "type"})


class Watch:
    """Listens to an engine's events about one container, in a thread of its own.

    Args:
        subscribe: opens the stream of container and network events, history included; it has
            ``close`` and yields decoded events.
        container: the container's full id.
    """

    def __init__(self, subscribe: Callable[[], Any], container: str) -> None:
        self._subscribe = subscribe
        self._container = container
        self._allowed: Counter[tuple[str, str]] = Counter(
            {("container", action): count for action, count in OWN.items()}
        )
        # The engine connects a container to its network when it starts.
        self._allowed["network", "connect"] = 1
        self._seen: Counter[tuple[str, str]] = Counter()
        self._found: list[Interference] = []
        self._changed = threading.Condition()
        self._stream: Any = None
        self._closed = False
        self.broken: str | None = None
        self._thread = threading.Thread(
            target=self._listen, name=f"events of {container[:12]}", daemon=True
        )
        self._thread.start()

    def announce(self, action: str) -> None:
        """Say that we are about to cause a container event."""
        with self._changed:
            self._allowed["container", action] += 1

    def settle(self, cause: Callable[[], bool], action: str) -> bool:
        """Wait until everything that happened up to now was observed.

        Args:
            cause: makes the engine report ``action``; returns whether the engine did what was asked.
            action: a container event that nobody else is expected to cause.

        Returns:
            Whether our own event came back; otherwise later ones could be missing.
        """
        key = ("container", action)
        with self._changed:
            self._allowed[key] += 1
            wanted = self._allowed[key]

        def over() -> bool:
            return self._seen[key] >= wanted or self.broken is not None

        deadline = time.monotonic() + _LATE
        # For a moment it refuses one that was paused and goes on again, and may take it for paused.
        while not (accepted := cause()) and time.monotonic() < deadline:
            with self._changed:
                if self._changed.wait_for(over, _AGAIN):
                    break
        with self._changed:
            return (
                self._changed.wait_for(over, _PATIENCE if accepted else 0) and self.broken is None
            )

    def found(self) -> tuple[Interference, ...]:
        """Return what others did so far."""
        with self._changed:
            return tuple(self._found)

    def close(self) -> None:
        """Stop listening. Safe to repeat."""
        with self._changed:
            self._closed = True
            stream = self._stream
        if stream is not None:
            with contextlib.suppress(Exception):
                stream.close()
        self._thread.join(1.0)

    def note(self, event: Mapping[str, Any]) -> None:
        """Take one event of the engine's."""
        actor: Mapping[str, Any] = event.get("Actor") or {}
        attributes: Mapping[str, Any] = actor.get("Attributes") or {}
        kind = str(event.get("Type", ""))
        if self._container not in (actor.get("ID"), attributes.get("container")):
            return
        # "exec_create: /bin/sh -c …": the rest is somebody's command line.
        action, _, detail = str(event.get("Action", "")).partition(":")
        if (kind == "container" and action in HARMLESS) or (kind, action) == (
            "network",
            "disconnect",
        ):
            # Of a network without "connect" to another one nothing can come in.
            return
        with self._changed:
            key = (kind, action)
            self._seen[key] += 1
            if self._seen[key] > self._allowed[key]:
                kept = {name: str(value) for name, value in attributes.items() if name in _KEPT}
                if detail.strip():
                    kept["detail"] = detail.strip()
                word = action if kind == "container" else f"{kind} {action}"
                self._found.append(Interference(word, time.monotonic(), kept))
            self._changed.notify_all()

    def _listen(self) -> None:
        reason = "the engine ended the stream of its events"
        try:
            stream: Iterable[Mapping[str, Any]] = self._subscribe()
            with self._changed:
                self._stream = stream
            if self._closed:
                return
            for event in stream:
                self.note(event)
        except Exception as error:  # noqa: BLE001 - a thread: whatever it is, it is told
            reason = f"the stream of the engine's events broke: {error}"
        with self._changed:
            if not self._closed:
                self.broken = reason
            self._changed.notify_all()
