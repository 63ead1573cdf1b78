"""sealrun in a process of its own, forked from one that has imported it already.

Most of what a short command costs is the start of Python and its imports. Here they are paid once.

Rules:

- A call is a process as any other: arguments, directory, variables, streams, umask, limits and exit
  status are its own, and what it leaves in memory ends with it. Only the imports are shared.
- What depends on how a process was started is not for these (``has_to_start``).
- That they are as started ones, and that nothing needs what was imported before it, is tested in
  ``test_forked.py``.
- The parent of all calls ends with the tests: it goes when its socket closes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What the interpreter, its loader or its locale read once, at the start.
_STEERING = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
_LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
#: Libraries that sealrun imports inside functions.
_LATER = ("docker", "psutil", "pydantic", "requests", "rich.console", "rich.table", "urllib3")
_LENGTH = 8
_lock = threading.Lock()
#: Whose parent it is, the parent of all calls, and the line to it; empty before the first call.
_parent: list[tuple[int, subprocess.Popen[bytes], socket.socket]] = []


def has_to_start(arguments: tuple[str, ...], variables: Mapping[str, str]) -> bool:
    """Say whether a call needs a process that was started for it.

    ``session`` hands on the variables that its process was started with, and our variables were told
    to an interpreter that runs already.
    """
    names = {name for name in {*variables, *os.environ} if name.startswith(_STEERING)}
    told = all(variables.get(name) == os.environ.get(name) for name in names)
    return "session" in arguments or not told


def run(
    program: Path, arguments: tuple[str, ...], cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end, as ``subprocess.run`` does with captured output.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``timeout`` seconds and was killed.
    """
    command = [str(program), *map(str, arguments)]
    state = {
        "argv": command,
        "cwd": str(cwd),
        "env": dict(env),
        "umask": _umask(),
        "limits": {name: resource.getrlimit(number) for name, number in _LIMITS.items()},
    }
    ours, theirs = socket.socketpair()
    out, out_end = os.pipe()
    errors, errors_end = os.pipe()
    try:
        _ask(json.dumps(state).encode(), (theirs.fileno(), out_end, errors_end))
    finally:
        theirs.close()
        os.close(out_end)
        os.close(errors_end)
    with ours:
        pid = int(_exactly(ours, _LENGTH))
        try:
            written = _read(out, errors, time.monotonic() + timeout)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(command, timeout) from None
        except BaseException:
            # As subprocess.run does: whoever stops waiting for a process leaves none behind.
            os.kill(pid, signal.SIGKILL)
            raise
        status = int(_exactly(ours, _LENGTH))
    texts = [content.decode(errors="surrogateescape") for content in written]
    texts = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), *texts)


def _umask() -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "Umask" in x)
    return int(line.split()[1], 8)


def _ask(state: bytes, descriptors: tuple[int, ...]) -> None:
    with _lock:
        if not _parent or _parent[0][0] != os.getpid():
            _parent[:] = [(os.getpid(), *_start())]
        connection = _parent[0][2]
        socket.send_fds(connection, [b"%*d" % (_LENGTH, len(state))], descriptors)
        connection.sendall(state)


def _start() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
    return process, ours


def _read(out: int, errors: int, deadline: float) -> tuple[bytes, bytes]:
    streams = {out: bytearray(), errors: bytearray()}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for descriptor in streams:
            stack.callback(os.close, descriptor)
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            for key, _ in selector.select(left):
                content = os.read(key.fd, 1 << 20)
                streams[key.fd] += content
                if not content:
                    selector.unregister(key.fd)
    return bytes(streams[out]), bytes(streams[errors])


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = connection.recv(size - len(content))
        assert more, "the parent of forked commands ended"
        content += more
    return content


# -- in the parent of all calls ---------------------------------------------------------------------


def _serve(connection: socket.socket) -> NoReturn:
    _import()
    # The terminal's interrupt is for the calls; each gets what the tests' own process was given.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    children: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in children:
                    pid, caller = children.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    with caller, contextlib.suppress(BrokenPipeError):
                        caller.sendall(b"%*d" % (_LENGTH, os.waitpid(pid, 0)[1]))
                    continue
                pid, caller = _fork(connection, interrupt)
                descriptor = os.pidfd_open(pid)
                children[descriptor] = pid, caller
                selector.register(descriptor, selectors.EVENT_READ)
                caller.sendall(b"%*d" % (_LENGTH, pid))


def _import() -> None:
    import gc

    import sealrun

    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    for found in pkgutil.walk_packages(sealrun.__path__, "sealrun."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in _LATER:
        importlib.import_module(name)
    gc.freeze()


def _fork(connection: socket.socket, interrupt: Any) -> tuple[int, socket.socket]:  # noqa: ANN401 - signal.signal's own type
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH, 3)
    if not head:
        os._exit(0)
    head += _exactly(connection, _LENGTH - len(head)) if len(head) < _LENGTH else b""
    state = json.loads(_exactly(connection, int(head)))
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, interrupt)
        _become(state, descriptors[1:])
    for descriptor in descriptors[1:]:
        os.close(descriptor)
    return pid, socket.socket(fileno=descriptors[0])


def _become(state: dict[str, Any], streams: list[int]) -> NoReturn:
    """Be what a process started from the beginning would be, and run the command line."""
    status = 70
    try:
        for number, descriptor in enumerate(streams, start=1):
            os.dup2(descriptor, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir(state["cwd"])
        os.umask(state["umask"])
        for name, limits in state["limits"].items():
            resource.setrlimit(_LIMITS[name], tuple(limits))
        os.environ.clear()
        os.environ.update(state["env"])
        time.tzset()
        tempfile.tempdir = None
        sys.argv[:] = state["argv"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        from sealrun.__main__ import main

        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the parent's loop must not go on in a second process
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
