r"""``sealrun logs``: what an experiment printed, while it runs or afterwards.

Rules that this module keeps:

- Bytes go to stdout as they are, unless stdout is a terminal: a terminal obeys control characters,
  so all but line feed, carriage return and tab are made visible there. ``--raw`` passes them.
- Following ends with the run: when its controller is gone and the log is read to its end.
- The log is opened without following links or waiting on pipes.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sealrun.cli import console
from sealrun.cli.console import printable
from sealrun.cli.reading import no_such_run, open_here
from sealrun.errors import Status, StorageFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sealrun.cli.reading import Here
    from sealrun.ledger import RunRecord

#: Name of the log in a run's directory.
LOG = "log"
#: Seconds between two looks at a log that grows.
_EVERY = 0.1
_CHUNK = 1 << 16
_PASSED = "\n\r\t"


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning.")],
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the run ends.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Pass control characters to the terminal.")
    ] = False,
) -> Status:
    """Print what an experiment printed.

    Example:  sealrun logs -f 01K9ZQ4M
    """
    with open_here() as here:
        if here.ledger is None:
            raise no_such_run(run)
        record = here.ledger.run(here.ledger.resolve(run))
        file = _file(here, record)
        descriptor = _await_log(here, record, file) if follow else open_log(file)
    if descriptor is None:
        console.current().say(f"run {record.run} printed nothing")
        return Status.OK
    encode = as_it_is if raw or not sys.stdout.isatty() else make_visible()
    try:
        alive = (lambda: here.state(record) == "alive") if follow else (lambda: False)
        for chunk in read(descriptor, alive):
            if not _write(encode(chunk)):
                break
        else:
            _write(encode(b""))
    finally:
        os.close(descriptor)
    return Status.OK


def open_log(file: Path) -> int | None:
    """Open a log; None when there is none.

    Raises:
        StorageFault: it is no regular file, or cannot be read.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageFault(f"cannot read the log {file}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageFault(f"the log {file} is no regular file")
    return descriptor


def read(descriptor: int, alive: Callable[[], bool]) -> Iterator[bytes]:
    """Yield a log's bytes; at its end wait for more as long as the run is alive."""
    while True:
        # Asked first: what was written before the death is still read after it.
        living = alive()
        chunk = os.read(descriptor, _CHUNK)
        if chunk:
            yield chunk
        elif living:
            time.sleep(_EVERY)
        else:
            return


def as_it_is(chunk: bytes) -> bytes:
    """Return the bytes."""
    return chunk


def make_visible() -> Callable[[bytes], bytes]:
    """Return a function from a stream's chunks to what a terminal may see; ``b""`` ends it."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def encode(chunk: bytes) -> bytes:
        text = decoder.decode(chunk, final=not chunk)
        return "".join(_visible(character) for character in text).encode()

    return encode


def _visible(character: str) -> str:
    if character in _PASSED:
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return printable(character)


def _file(here: Here, record: RunRecord) -> Path:
    kept = record.ended.log if record.ended else None
    return Path(kept) if kept else here.places.run(here.repository, record.run) / LOG


def _await_log(here: Here, record: RunRecord, file: Path) -> int | None:
    while True:
        living = here.state(record) == "alive"
        descriptor = open_log(file)
        if descriptor is not None or not living:
            return descriptor
        time.sleep(_EVERY)


def _write(content: bytes) -> bool:
    """Write to stdout; False when its reader has gone away."""
    with console.taken(sys.stdout):
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return True
    return False
