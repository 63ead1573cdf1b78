"""What the reading commands share: the ledger of the repository around us, and how values look.

Rules that this module keeps:

- Reading never begins a ledger; where there is none, that is no error unless pinned runs miss it.
- Every text goes through ``visible`` before a terminal sees it.
- What is not known is ``-``, in tables and in sections.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

from sealrun.cli.console import printable
from sealrun.errors import UsageError

if TYPE_CHECKING:
    from types import TracebackType

    from sealrun.ledger import Ledger, RunRecord
    from sealrun.state import Places

#: What stands for something that is not known.
UNKNOWN = "-"
#: Said where no run is on record.
NO_RUNS = "no runs yet"
#: Shortest beginning of a commit id that is looked up (git's own minimum, core.abbrev).
COMMIT_DIGITS = 4

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MINUTE, _HOUR = 60, 3600
_KIB = 1024


@dataclass(frozen=True)
class Here:
    """The repository around the current directory, as far as its ledger goes.

    Attributes:
        repository: its id; empty when nothing was ever recorded.
        ledger: open for reading; None when there is none yet.
    """

    places: Places
    repository: str
    ledger: Ledger | None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.ledger is not None:
            self.ledger.close()

    def state(self, record: RunRecord) -> str:
        """Return ``ended``, ``alive`` (its controller runs) or ``lost`` (it died)."""
        from sealrun.ledger import is_alive

        if record.ended is not None:
            return "ended"
        return "alive" if is_alive(self.places, self.repository, record.run) else "lost"


def open_here() -> Here:
    """Open the ledger of the repository around the current directory, for reading.

    Raises:
        RepositoryError: there is no repository here.
        LedgerMissing: runs are pinned, but their ledger is gone.
        LedgerError: it cannot be read.
    """
    from sealrun.git import Repository
    from sealrun.ledger import open_ledger
    from sealrun.state import Places, repository_id

    repository = Repository.here()
    identity = repository_id(repository.common_dir, create=False)
    pinned = bool(repository.pinned())
    places = Places.of_user()
    if identity is None:
        if pinned:
            from sealrun.leftovers import without_id

            raise without_id(repository)
        return Here(places, "", None)
    ledger = open_ledger(places.ledger(identity), identity, pinned_refs_exist=pinned)
    return Here(places, identity, ledger)


def no_such_run(run: str) -> UsageError:
    """Return the error for a run where none is on record."""
    return UsageError(f"there is no run {run!r} here: {NO_RUNS}")


def visible(text: object) -> str:
    """Return one line that a terminal shows and does not obey; None is ``-``."""
    return UNKNOWN if text is None else printable(str(text))


def local_time(moment: str | None, *, seconds: bool = False) -> str:
    """Return a time of the ledger in the caller's time zone."""
    if moment is None:
        return UNKNOWN
    try:
        parsed = datetime.fromisoformat(moment)
        return f"{parsed.astimezone():{'%Y-%m-%d %H:%M:%S' if seconds else '%m-%d %H:%M'}}"
    except (ValueError, OverflowError):
        return visible(moment)


def duration(seconds: float | None) -> str:
    """Return seconds as a person reads them: ``0.42 s``, ``5 min 3 s``, ``2 h 10 min``."""
    if seconds is None or not 0 <= seconds < float("inf"):
        return UNKNOWN
    if seconds < _MINUTE:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def size(amount: int | None) -> str:
    """Return bytes as a person reads them, in binary units."""
    if amount is None:
        return UNKNOWN
    scaled = float(amount)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(scaled) < _KIB:
            return f"{amount} bytes" if unit == "bytes" else f"{scaled:.4g} {unit}"
        scaled /= _KIB
    return f"{scaled:.4g} TiB"


def metric_value(value: float | None) -> str:
    """Return a metric's value as exactly as it was printed, or ``-``."""
    return UNKNOWN if value is None else f"{value:.10g}"


def since(text: str, now: datetime | None = None) -> str:
    """Return the time that a user means, as the ledger writes times.

    Args:
        text: ``90s``, ``30m``, ``12h``, ``7d``, ``2w`` before now, or a date or time in ISO 8601;
            without an offset it is the caller's own time.
        now: the present, for tests.

    Raises:
        UsageError: it is neither.
    """
    from sealrun.ledger import utc

    now = now or datetime.now(UTC)
    try:
        if text[-1:] in _SECONDS and text[:-1].isdecimal():
            return utc(now - timedelta(seconds=int(text[:-1]) * _SECONDS[text[-1]]))
        return utc(datetime.fromisoformat(text).astimezone())
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since {text!r} is no time",
            hint="Give an age like 90m, 12h or 7d, or a date like 2026-03-08 or 2026-03-08T21:30.",
        ) from error


def chosen(option: str, values: list[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the values of an option that takes words of a closed set.

    Raises:
        UsageError: one is not in the set.
    """
    for value in values or ():
        if value not in known:
            raise UsageError(f"{option} {value!r} is unknown", hint=f"One of {', '.join(known)}.")
    return tuple(values or ())
