"""Configuration files of the user's own: private, bounded, and without a value in any message.

Rules that this module keeps:

- A file that anybody else can write is refused, and one that holds a secret that anybody else can
  read; a FIFO or a device in its place holds nobody up.
- A message names the file and the line, and never repeats a value: a value may be a secret.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealrun.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from pydantic import ValidationError

#: Bytes of such a file at most.
LARGEST = 1 << 16


@dataclass(frozen=True)
class OwnFile:
    """A file as it was read.

    Attributes:
        path: where it stands.
        text: what it holds.
        mode: its permissions.
    """

    path: Path
    text: str
    mode: int

    def values(self) -> dict[str, Any]:
        """Return what it says as TOML.

        Raises:
            UsageError: it is no TOML.
        """
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{self.path}: {error}", hint="The file is TOML (toml.io).") from error

    def require_secrecy(self) -> None:
        """Refuse a file that others can read.

        Raises:
            UsageError: they can.
        """
        if self.mode & 0o077:
            raise UsageError(
                f"{self.path} holds a secret and can be read by others "
                f"(mode {self.mode & 0o777:04o})",
                hint=f"chmod 600 {self.path}",
            )

    def invalid(self, error: ValidationError, *, unions: Iterable[str] = ()) -> UsageError:
        """Return the error for a file that does not validate: each key with its line, no value.

        Args:
            error: what pydantic found.
            unions: names of types that stand in pydantic's places but in no key of the file.
        """
        skipped = frozenset(unions)
        problems: list[str] = []
        for problem in error.errors(include_input=False, include_url=False):
            place = [str(part) for part in problem["loc"] if part != "[key]"]
            # Of a union the location names the type too: section, name, type.
            if len(place) > 2 and place[2] in skipped:  # noqa: PLR2004 - see above
                del place[2]
            place = [part for part in place if not part.isdigit()]
            line = line_of(self.text, place)
            where = f"{self.path}:{line}" if line else str(self.path)
            dotted = ".".join(place)
            if problem["type"] == "extra_forbidden":
                problems.append(f"{where}: unknown key {dotted}")
            else:
                problems.append(
                    f"{where}: {dotted}: {problem['msg'].removeprefix('Value error, ')}"
                )
        return UsageError("; ".join(problems))


def read(path: Path, what: str) -> OwnFile | None:
    """Read a file that nobody else can write; None where there is none.

    Args:
        path: where it stands.
        what: it is, for messages.

    Raises:
        UsageError: it cannot be read, is too large, no text, or others can write it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST:
            raise UsageError(f"{path} cannot be {what}: no file, or too large")
        if facts.st_uid not in (os.geteuid(), 0) or facts.st_mode & 0o022:
            raise UsageError(
                f"{path} can be written by others (mode {facts.st_mode & 0o777:04o})",
                hint=f"Make it yours: chmod 600 {path}",
            )
        content = os.read(descriptor, LARGEST)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    try:
        return OwnFile(path, content.decode("utf-8"), facts.st_mode)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from error


def secret(section: object, name: str, environment: Mapping[str, str]) -> str | None:
    """Return a secret, wherever its section says that it is kept; None where it has none.

    Args:
        section: has the attributes ``NAME`` (pydantic's ``SecretStr``), ``NAME_env``, ``NAME_file``.
        name: of the secret.
        environment: where variables are looked up.

    Raises:
        UsageError: it is kept somewhere where it is not, or where others can read it.
    """
    given = getattr(section, name)
    if given is not None:
        return str(given.get_secret_value()).strip()
    variable = getattr(section, f"{name}_env")
    if variable is not None:
        value = environment.get(variable, "").strip()
        if not value:
            raise UsageError(
                f"the variable {variable} is not set where sealrun was called",
                hint=f"Set it for the loop, or keep the {name} in a file: {name}_file.",
            )
        return value
    place = getattr(section, f"{name}_file")
    if place is None:
        return None
    found = read(Path(place), f"the file of the {name}")
    if found is None:
        raise UsageError(f"{place} does not exist", hint=f"It has to hold the {name}.")
    found.require_secrecy()
    if not found.text.strip():
        raise UsageError(f"{place} is empty", hint=f"It has to hold the {name}.")
    return found.text.strip()


@contextlib.contextmanager
def faults_as(kind: type[UsageError], hint: str) -> Generator[None]:
    """Let what is wrong with a user's file be an error of the part that the file is for.

    Args:
        kind: the error of that part.
        hint: what to do where nothing better is known.

    Raises:
        UsageError: of that kind.
    """
    try:
        yield
    except UsageError as error:
        raise kind(error.message, hint=error.hint or hint) from error


def line_of(text: str, place: list[str]) -> int | None:
    """Return the line of a key of a TOML text, or of the nearest section above it."""
    wanted = list(place)
    while wanted:
        section: list[str] = []
        for number, line in enumerate(text.split("\n"), 1):
            if header := re.match(r"\s*\[+([^\]]*)\]+", line):
                section = _parts(header[1])
                if section == wanted:
                    return number
            elif (key := re.match(r"\s*([^=#]+?)\s*=", line)) and [
                *section,
                *_parts(key[1]),
            ] == wanted:
                return number
        wanted.pop()
    return None


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]
