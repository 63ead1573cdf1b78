"""The guard's socket: who may speak to it, and what each call does.

Rules that this module keeps:

- Only the guard's own user and root may call; the kernel says who calls (SO_PEERCRED, unix(7)).
- A run belongs to the connection that armed it: when that closes, for whatever reason, the run is
  disarmed. The standing watch belongs to nobody: it goes on.
- A connection's thread waits; the guard's own thread never waits for a client.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import sealrun
from sealrun.errors import GuardError, SealrunError
from sealrun.guard.address import SOCKET, nearby, peer
from sealrun.guard.manifest import read_manifest
from sealrun.guard.messages import LONGEST, PROTOCOL, Document, decode, encode, path_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from sealrun.guard.armed import ArmedRun
    from sealrun.guard.core import Guard
    from sealrun.guard.mutations import Mutation, Report

log = logging.getLogger("sealrun.guard")

#: Connections at once; far more than runs that one workspace can have.
CONNECTIONS = 256


class Server:
    """Listens on a socket in the guard's private directory."""

    def __init__(self, guard: Guard, directory: Path) -> None:
        self._guard = guard
        self._open = threading.Semaphore(CONNECTIONS)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        file = directory / SOCKET
        file.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            with nearby(directory) as near:
                self._socket.bind(f"{near}/{SOCKET}")
        finally:
            os.umask(old)
        self._socket.listen(64)

    def start(self) -> None:
        """Accept connections in a thread."""
        threading.Thread(target=self._accept, daemon=True, name="accept").start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if peer(connection) not in {0, os.geteuid()}:
                log.warning("refused a connection of another user")
                connection.close()
                continue
            if not self._open.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rwb") as stream:
                _Conversation(self._guard, stream).hold()
        except (OSError, ValueError):
            pass  # the client went away; its runs were disarmed
        except GuardError as error:
            log.warning("ended a connection: %s", error)
        finally:
            self._open.release()


class _Conversation:
    """One client's calls, in order."""

    def __init__(self, guard: Guard, stream: Any) -> None:  # noqa: ANN401 - BufferedRWPair
        self._guard = guard
        self._stream = stream
        self._mine: dict[str, Path | None] = {}
        self._calls: dict[str, Callable[[Document], Any]] = {
            "hello": self._hello,
            "stop": self._stop,
            "status": self._status,
            "arm": self._arm,
            "drain": self._drain,
            "disarm": self._disarm,
            "history": self._history,
            "stand": self._stand,
            "between": self._between,
        }

    def hold(self) -> None:
        """Answer until the client goes."""
        try:
            while line := self._stream.readline(LONGEST + 1):
                if len(line) > LONGEST:
                    raise GuardError("a client sent a line that is too long")
                call = decode(line)
                if call.get("call") == "follow":
                    self._follow(call)
                    return
                self._answer(call)
        finally:
            for run_id, between in self._mine.items():
                log.info("run %s: its client went away", run_id)
                self._guard.drained(partial(self._abandon, run_id, between))

    def _answer(self, call: Document) -> None:
        work = self._calls.get(str(call.get("call")))
        try:
            if work is None:
                raise GuardError(f"the guard knows no call {call.get('call')!r}")
            answer: Document = {"ok": work(call)}
        except SealrunError as error:
            answer = {"error": error.message, "hint": error.hint}
        except (KeyError, TypeError, ValueError) as error:
            answer = {"error": f"the call is malformed: {error!r}", "hint": None}
        except Exception as error:
            log.exception("a call failed")
            answer = {"error": f"the guard failed: {error!r}", "hint": None}
        self._send({**answer, "instance": self._guard.instance})

    def _send(self, message: Document) -> None:
        self._stream.write(encode(message))
        self._stream.flush()

    def _hello(self, _: Document) -> Document:
        return {
            "protocol": PROTOCOL,
            "version": sealrun.__version__,
            "pid": os.getpid(),
            "busy": list(self._guard.call(lambda: self._guard.busy).result()),
        }

    def _stop(self, call: Document) -> Document:
        busy = self._guard.call(lambda: self._guard.busy).result()
        if busy and not call.get("force"):
            raise GuardError(
                f"the guard is guarding run {', '.join(busy)}",
                hint="Wait for the run to end, or cancel it; then try again.",
            )
        self._guard.end(str(call.get("why", "asked to")))
        return {}

    def _status(self, _: Document) -> Any:  # noqa: ANN401 - encoded at once
        return self._guard.drained(self._guard.status).result()

    def _arm(self, call: Document) -> Any:  # noqa: ANN401 - encoded at once
        run_id = str(call["run"])
        manifest = read_manifest(Path(str(call["manifest"])))
        data = [os.path.realpath(path_bytes(root)) for root in call["data"]]
        evidence = Path(str(call["evidence"]))
        self._guard.call(lambda: self._guard.arm(run_id, manifest, evidence, data)).result()
        between = call.get("between")
        self._mine[run_id] = None if between is None else Path(str(between))
        return self._guard.drained(lambda: self._guard.armed(run_id)).result()

    def _drain(self, call: Document) -> Any:  # noqa: ANN401 - encoded at once
        return self._guard.drained(lambda: self._guard.report(str(call["run"]))).result()

    def _disarm(self, call: Document) -> Any:  # noqa: ANN401 - encoded at once
        run_id = str(call["run"])
        between = self._mine.get(run_id)

        def end() -> Report:
            # One step: no write falls between the run and the standing watch.
            report = self._guard.report(run_id)
            run = self._end(run_id)
            if run is not None and between is not None:
                self._guard.renew(run.manifest, between, run)
            return report

        report = self._guard.drained(end).result()
        self._mine.pop(run_id, None)
        return report

    def _abandon(self, run_id: str, between: Path | None) -> None:
        # Nobody was told what the standing watch saw; it is not begun anew.
        run = self._end(run_id)
        if run is not None and between is not None and not self._guard.stands:
            self._guard.renew(run.manifest, between, None)

    def _stand(self, call: Document) -> Any:  # noqa: ANN401 - encoded at once
        manifest = read_manifest(Path(str(call["manifest"])))
        evidence = Path(str(call["evidence"]))
        return self._guard.drained(lambda: self._guard.stand(manifest, evidence)).result()

    def _between(self, _: Document) -> Any:  # noqa: ANN401 - encoded at once
        return self._guard.drained(self._guard.between).result()

    def _history(self, call: Document) -> Any:  # noqa: ANN401 - encoded at once
        since = float(call["since"])
        return self._guard.drained(lambda: self._guard.history(since)).result()

    def _end(self, run_id: str) -> ArmedRun | None:
        run = self._guard.disarm(run_id)
        for end in _ends.pop(run_id, []) if run is not None else []:
            end()
        return run

    def _follow(self, call: Document) -> None:
        """Push mutations until the run is disarmed or the client goes."""
        run_id = str(call["run"])
        found: SimpleQueue[Mutation | None] = SimpleQueue()

        def subscribe() -> None:
            self._guard.subscribe(run_id, found.put)
            _ends.setdefault(run_id, []).append(lambda: found.put(None))

        try:
            self._guard.call(subscribe).result()
        except SealrunError as error:
            self._send({"error": error.message, "hint": error.hint})
            return
        self._send({"ok": {}, "instance": self._guard.instance})
        while (mutation := found.get()) is not None:
            self._send({"mutation": mutation})
        self._send({"end": True})


#: What ends the followers of each run; only the guard's own thread touches it.
_ends: dict[str, list[Callable[[], None]]] = {}
