"""Judging a finished night: hostile tables, what git still knows, what logs contradict, suspects."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _cli import Cli
from _git import WHO, Repo
from _ledger import HOSTILE, ended, ledger_at, opened
from sealrun.audit.constants import mentions, printed_as, read_script
from sealrun.audit.decisions import judge
from sealrun.audit.findings import MEANINGS, Code, Found
from sealrun.audit.history import State, read_history
from sealrun.audit.logs import parse_log, read_logs
from sealrun.audit.night import Night, Question, judge_night, summary
from sealrun.audit.objects import Objects
from sealrun.audit.suspects import Measured, suspects
from sealrun.audit.table import COLUMNS, ROW_LIMIT, STATUSES, Table, parse
from sealrun.cli.audit import ranges
from sealrun.errors import UsageError
from sealrun.ledger import Because, Judgement, MetricFacts
from sealrun.state import repository_id

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOP = Path(__file__).resolve().parents[1] / "examples" / "loop.sh"
HEADER = "\t".join(COLUMNS)
#: A training script without the training: a number from its settings, and the usual summary.
SCRIPT = """\
import hashlib, pathlib
WIDTH = 4
WARMUP = 0.0
SCALAR_LR = 0.5
print("train_py_sha256:", hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest())
print(f"scalar_lr: {SCALAR_LR}")
print("---")
print(f"val_bpb:          {3 - WARMUP - WIDTH / 100 + SCALAR_LR / 1000:.6f}")
print("peak_vram_mb:     2048.0")
"""


def rows_of(*rows: str) -> Table:
    """Read a table from rows with spaces in the place of tabs, descriptions without spaces."""
    return parse(("\n".join([HEADER, *("\t".join(row.split(" ")) for row in rows)])).encode())


def codes(found: Sequence[Found]) -> list[tuple[int, str]]:
    """Return row and code of each finding."""
    return [(one.row, one.code.value) for one in found]


# -- the table -----------------------------------------------------------------------------------


def test_a_table_as_loops_write_it() -> None:
    """Each field of a good row is read; a word in the place of a commit stays as it is."""
    table = rows_of(
        "baseline 0.997900 44.0 keep baseline", "bea057b 0.000000 0.0 crash assert-failed"
    )
    first, second = table.rows
    assert (first.commit, first.value, first.digits, first.memory) == ("baseline", 0.9979, 6, 44.0)
    assert (first.has_id, first.measured, first.line) == (False, 0.9979, 2)
    assert (second.has_id, second.measured, second.number) == (True, None, 2)
    assert [(one.line, "no commit id" in one.text) for one in table.problems] == [(2, True)]


@pytest.mark.parametrize(
    ("line", "words", "is_row"),
    [
        (b"bea057b\t0.9\t44.0\tkeep\ta\ttab in it", "6 fields", True),
        (b"bea057b\t0.9\t44.0\tkeep", "no description", True),
        (b"bea057b\t0.9\t44.0", "3 fields", False),
        (b"bea057b 0.9 44.0 keep no tabs at all", "1 fields", False),
        (b"bea057b\t0.9\t44.0\tkept\tx", "'kept' is unknown", True),
        (b"bea057b\tnan\t44.0\tkeep\tx", "'nan' is no finite number", True),
        (b"bea057b\t1e999\t44.0\tkeep\tx", "no finite number", True),
        (b"bea057b\t0x1p3\t44.0\tkeep\tx", "no finite number", True),
        (b"bea057b\t\xd9\xa3\t44.0\tkeep\tx", "no finite number", True),
        (b"bea057b\t0.9\tmuch\tkeep\tx", "the memory 'much'", True),
        (b"HEAD~1\t0.9\t44.0\tkeep\tx", "no commit id", True),
        (b"--all\t0.9\t44.0\tkeep\tx", "no commit id", True),
        (b"bea057b\t0.9\t44.0\tkeep\tcaf\xe9", "not UTF-8", True),
        (b"", "empty", False),
        (b"   \r", "empty", False),
        (HEADER.encode(), "once more", False),
        (b"x" * 100_000, "100000 bytes", False),
    ],
)
def test_a_bad_line_is_named_and_costs_nothing_else(
    line: bytes, words: str, *, is_row: bool
) -> None:
    """What is wrong with a line is told with its number; the rows around it stay."""
    good = b"abcd123\t0.5\t44.0\tdiscard\tgood"
    table = parse(b"\n".join([HEADER.encode(), good, line, good, b""]))
    assert len(table.rows) == 2 + is_row
    assert [row.line for row in table.rows if row.description == "good"] == [2, 4]
    assert [one.line for one in table.problems] == [3]
    assert words in table.problems[0].text


def test_lines_end_as_files_of_other_systems_end_them() -> None:
    """A byte order mark and CRLF cost a remark at most; the header may be missing."""
    table = parse(b"\xef\xbb\xbf" + HEADER.encode() + b"\r\nabcd\t1.0\t1.0\tkeep\tx\r\n")
    assert (table.headed, table.rows[0].description) == (True, "x")
    assert [one.line for one in table.problems] == [1]
    bare = parse(b"abcd\t1.0\t1.0\tkeep\tx")
    assert (bare.headed, len(bare.rows)) == (False, 1)
    assert "name the columns" in bare.problems[0].text
    assert parse(b"") == Table((), (), headed=False)


def test_a_huge_table_is_read_to_its_limit() -> None:
    """Rows past the limit are not read, and that is said."""
    table = parse(b"abcd\t1.0\t1.0\tkeep\tx\n" * (ROW_LIMIT + 5))
    assert len(table.rows) == ROW_LIMIT
    assert table.problems[-1].line == ROW_LIMIT + 1


@given(
    st.binary(max_size=400) | st.lists(st.sampled_from([*b"\t\n\r0.9ae-"]), max_size=200).map(bytes)
)
def test_any_bytes_can_be_read_and_judged(content: bytes) -> None:
    """No input makes reader or judge fail; each problem and each row names a line of the file."""
    table = parse(content)
    last = content.count(b"\n") + 1
    assert all(1 <= one.line <= last for one in table.problems)
    assert [row.number for row in table.rows] == list(range(1, len(table.rows) + 1))
    assert all(1 <= row.line <= last for row in table.rows)
    night = judge_night(table, Question(noise=0.1))
    assert "\n" not in summary(night)
    json.dumps([one.text for one in night.found])


_CELL = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[0-9a-f]{7}", fullmatch=True),
            st.floats(0.001, 100).map(lambda value: f"{value:.6f}"),
            st.sampled_from(STATUSES),
            _CELL,
        ),
        max_size=30,
    )
)
def test_what_a_loop_writes_is_read_back(rows: list[tuple[str, str, str, str]]) -> None:
    """Good rows are read without a problem, each field as it was written."""
    lines = [f"{commit}\t{value}\t44.0\t{status}\t{text}" for commit, value, status, text in rows]
    table = parse("\n".join([HEADER, *lines, ""]).encode())
    assert table.problems == ()
    read = [(r.commit, f"{r.value:.6f}", r.status, r.description) for r in table.rows]
    assert read == rows


# -- decisions -----------------------------------------------------------------------------------


def test_each_decision_is_held_against_the_best_kept_before() -> None:
    """A keep that is no better, a discard that was, and a gain below the noise are found."""
    table = rows_of(
        "aaaa001 1.000000 4.0 keep first",
        "aaaa002 0.900000 4.0 keep fine",
        "aaaa003 0.900000 4.0 keep equal",
        "aaaa004 0.950000 4.0 keep worse",
        "aaaa005 0.899900 4.0 keep little",
        "aaaa006 0.899000 4.0 discard better",
        "aaaa007 0.950000 4.0 discard fine",
    )
    assert codes(list(judge(table.rows, noise=0.001))) == [
        (3, "kept-no-better"),
        (4, "kept-no-better"),
        (5, "within-noise"),
        (6, "discarded-better"),
    ]
    assert (5, "within-noise") not in codes(list(judge(table.rows)))
    assert (2, "kept-no-better") in codes(list(judge(table.rows, maximize=True)))


def test_a_gain_of_exactly_the_noise_is_not_below_it() -> None:
    """Gains are compared as the table writes them, not as floats subtract."""
    table = rows_of("aaaa001 0.970000 4.0 keep a", "aaaa002 0.969700 4.0 keep b")
    assert list(judge(table.rows, noise=0.0003)) == []
    assert codes(list(judge(table.rows, noise=0.000301))) == [(2, "within-noise")]


def test_crashes_and_their_numbers() -> None:
    """A crash with a number, and a zero that is no crash, are found and compared with nothing."""
    table = rows_of(
        "aaaa001 0.900000 4.0 keep a",
        "aaaa002 0.800000 4.0 crash b",
        "aaaa003 0.000000 0.0 keep c",
        "aaaa004 0.000000 0.0 crash d",
        "aaaa005 none 4.0 keep e",
        "aaaa006 0.850000 4.0 keep f",
    )
    assert codes(list(judge(table.rows))) == [
        (2, "crashed-with-number"),
        (3, "zero-without-crash"),
        (5, "kept-unmeasured"),
    ]


def test_a_commit_measured_twice_shows_the_noise() -> None:
    """The second row of a commit names the first, and how far their numbers are apart."""
    table = rows_of("aaaa001 0.9702 4.0 keep a", "AAAA001 0.9700 4.0 keep again")
    (found,) = judge(table.rows)
    assert (found.code, found.other) == (Code.REPEATED_COMMIT, 1)
    assert "differ by 0.0002" in found.text


# -- what git knows ------------------------------------------------------------------------------


def states(repo: Repo, *written: str) -> list[State]:
    """Return what became of commits."""
    repository = repo.find()
    with Objects(repository) as objects:
        history = read_history(repository, written, objects)
    return [history.states[one] for one in written]


def test_commits_that_are_there_and_commits_that_are_not(repo: Repo) -> None:
    """Reachable, left behind by a reset, gone, and never there are told apart."""
    kept = repo.commit({"train.py": "A = 1\n"})
    left = repo.commit({"train.py": "A = 2\n"})
    repo.git("reset", "-q", "--hard", "HEAD~1")
    gone = repo.commit({"train.py": "A = 3\n"})
    repo.git("reset", "-q", "--hard", "HEAD~1")
    (repo.path / ".git" / "objects" / gone[:2] / gone[2:]).unlink()
    blob = repo.git("hash-object", "train.py")
    assert states(repo, kept[:7], left[:7], left, gone[:7], "0123abc", blob[:7]) == [
        State.REACHABLE,
        State.UNREACHABLE,
        State.UNREACHABLE,
        State.MISSING,
        State.MISSING,
        State.MISSING,
    ]


def test_a_branch_is_not_taken_for_a_commit_of_its_name(repo: Repo) -> None:
    """A branch whose name looks like a commit id stands for nothing."""
    commit = repo.commit({"train.py": "A = 1\n"})
    repo.git("branch", "decade1")
    repo.git("tag", commit[:6], repo.git("commit-tree", "-m", "other", f"{commit}^{{tree}}"))
    assert states(repo, "decade1", commit[:6]) == [State.MISSING, State.REACHABLE]


def test_ambiguous_beginnings(repo: Repo) -> None:
    """Digits that begin two commits are ambiguous; a blob of the same beginning does not count."""
    tree = repo.git("rev-parse", f"{repo.commit({'train.py': 'A = 1'})}^{{tree}}")
    first: dict[str, str] = {}
    pair: tuple[str, str] | None = None
    number = 0
    while pair is None:
        made = repo.git("commit-tree", "-m", str(number), tree)
        number += 1
        if made[:4] in first:
            pair = (first[made[:4]], made)
        first[made[:4]] = made
        if number % 100 == 0:
            assert number < 3000
    one, two = pair
    assert states(repo, one[:4], one, two) == [
        State.AMBIGUOUS,
        State.UNREACHABLE,
        State.UNREACHABLE,
    ]


def test_a_forged_commit_is_damaged(repo: Repo) -> None:
    """An overwritten loose object is served by git under its old id; we hash it."""
    repo.commit({"train.py": "A = 1\n"})
    commit = repo.commit({"train.py": "A = 2\n"})
    raw = subprocess.run(
        ["git", "cat-file", "commit", commit], cwd=repo.path, check=True, capture_output=True
    ).stdout.replace(b"an idea", b"my idea")
    file = repo.path / ".git" / "objects" / commit[:2] / commit[2:]
    file.chmod(0o644)
    file.write_bytes(zlib.compress(b"commit %d\0" % len(raw) + raw))
    assert states(repo, commit) == [State.DAMAGED]
    file.write_bytes(b"no zlib at all")
    assert states(repo, commit)[0] in (State.DAMAGED, State.MISSING)


def test_a_repository_of_the_other_hash(tmp_path: Path) -> None:
    """SHA-256 repositories are read like any other."""
    repo = Repo.create(tmp_path / "sha256", "--object-format=sha256")
    commit = repo.commit({"train.py": "A = 1\n"})
    assert len(commit) == 64
    assert states(repo, commit[:7], commit) == [State.REACHABLE, State.REACHABLE]


def test_a_shallow_clone_says_what_it_never_had(repo: Repo, tmp_path: Path) -> None:
    """In a shallow clone older commits are missing, and the audit says why it cannot know."""
    old = repo.commit({"train.py": "A = 1\n"})
    new = repo.commit({"train.py": "A = 2\n"})
    repo.git("clone", "-q", "--depth=1", f"file://{repo.path}", str(tmp_path / "shallow"))
    clone = Repo(tmp_path / "shallow", tmp_path / "spool")
    table = rows_of(f"{old[:7]} 1.0 4.0 keep a", f"{new[:7]} 0.9 4.0 keep b")
    night = night_in(clone, table)
    assert codes(night.found) == [(1, "commit-missing")]
    assert "what is older than this shallow clone" in night.unknown


def night_in(repo: Repo, table: Table, logs: Path | None = None, **question: Any) -> Night:  # noqa: ANN401 - of Question
    """Judge a table in a repository."""
    read = read_logs(logs, table.rows) if logs else None
    return judge_night(table, Question(**question), repo.find(), read)


def test_lineage(repo: Repo) -> None:
    """Rows made on a discarded commit, keeps that were left and unrecorded commits are found."""
    base = repo.commit({"train.py": "A = 1\n"})
    bad = repo.commit({"train.py": "A = 2\n"})
    heir = repo.commit({"train.py": "A = 3\n"})
    repo.git("reset", "-q", "--hard", base)
    aside = repo.commit({"train.py": "A = 4\n"})
    repo.commit({"notes": "x"})
    far = repo.commit({"train.py": "A = 5\n"})
    table = rows_of(
        f"{base[:7]} 1.0 4.0 keep base",
        f"{bad[:7]} 1.1 4.0 discard A-2",
        f"{heir[:7]} 0.9 4.0 keep A-3",
        f"{aside[:7]} 0.8 4.0 keep A-4",
        f"{far[:7]} 0.7 4.0 keep A-5",
    )
    found = [one for one in night_in(repo, table).found if one.code != Code.UNREACHABLE]
    assert codes(found) == [
        (2, "discard-lives-on"),
        (3, "keep-left"),
        (3, "other-parent"),
        (4, "other-parent"),
        (5, "other-parent"),
    ]
    texts = {(one.row, one.code): one.text for one in found}
    assert "row 2's commit (discard)" in texts[3, Code.OTHER_PARENT]
    assert "row 1's commit (keep)" in texts[4, Code.OTHER_PARENT]
    assert "1 commit without a row" in texts[5, Code.OTHER_PARENT]
    assert "row 3's kept commit" in texts[2, Code.DISCARD_LIVES_ON]


def test_amended_commits_are_known_after_they_are_gone(repo: Repo) -> None:
    """The reflog tells that a row's commit was amended, even when the object is removed."""
    measured = repo.commit({"train.py": "A = 1\n"})
    repo.write({"train.py": "A = 2\n"})
    repo.git("commit", "-q", "-a", "--amend", "-m", "another idea")
    (repo.path / ".git" / "objects" / measured[:2] / measured[2:]).unlink()
    table = rows_of(f"{measured[:7]} 1.0 4.0 keep base")
    found = night_in(repo, table).found
    assert codes(found) == [(1, "amended"), (1, "commit-missing")]
    assert "amended afterwards" in found[0].text


def test_a_hostile_reflog_is_read_as_far_as_it_goes(repo: Repo) -> None:
    """Lines that do not parse, links and pipes in the place of reflogs are left out."""
    commit = repo.commit({"train.py": "A = 1\n"})
    logs = repo.path / ".git" / "logs"
    with (logs / "HEAD").open("ab") as file:
        file.write(b"\xff\xfe no reflog\n\n" + b"0" * 40 + b"\n")
    (logs / "refs" / "heads" / "link").symlink_to("/etc/passwd")
    os.mkfifo(logs / "refs" / "heads" / "pipe")
    night = night_in(repo, rows_of(f"{commit[:7]} 1.0 4.0 keep base"))
    assert night.lineage is not None
    assert len(night.lineage.history.moves) == 1
    shutil.rmtree(logs)
    unknown = night_in(repo, rows_of(f"{commit[:7]} 1.0 4.0 keep base")).unknown
    assert any("no reflog" in one for one in unknown)


def test_a_commit_older_than_an_earlier_row(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose commits go back in time are named."""
    first = repo.commit({"a": "1"})
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2020-01-01T00:00:00Z")
    second = repo.commit({"a": "2"})
    table = rows_of(f"{first[:7]} 1.0 4.0 keep a", f"{second[:7]} 0.9 4.0 keep b")
    assert (2, "out-of-order") in codes(night_in(repo, table).found)


# -- what scripts and logs say -------------------------------------------------------------------


def test_constants_are_those_that_nothing_changes() -> None:
    """Reassigned, shadowed, computed and imported names are no constants; a label names its own."""
    script = read_script(
        b"A = 1\nB: float = -2.5\nC = 3\nC = 4\nD = 5\ndef f(D): pass\nE = A * 2\n"
        b"for F in (1, 2): pass\nF = 3\nG = 7\ndef g():\n  global G\n  G = 8\n"
        b'print(f"a: {A:.2f}\\nb: {B}")\nprint("e =", E)\nprint("c:", C)\nprint(f"steps: {len([])}")'
    )
    assert script is not None
    assert script.constants == {"A": 1, "B": -2.5}
    shown = {label: one.constant if one else None for label, one in script.labels.items()}
    assert shown == {"a": "A", "b": "B", "e": "E", "c": "C", "steps": None}


@pytest.mark.parametrize(
    "content",
    [
        b"A = 1\nfrom config import *\n",
        b"A = 1\nglobals()['A'] = 2\n",
        b"A = 1\nexec('A = 2')\n",
    ],
)
def test_a_file_that_can_change_names_by_text_has_no_constants(content: bytes) -> None:
    """Where any name could be bound anew, nothing is certain."""
    script = read_script(content)
    assert script is not None
    assert script.constants == {}


@pytest.mark.parametrize(
    "content", [None, b"\0", b"def", b"(" * 100_000, b"\xff", b"x = " + b"-" * 50_000 + b"1"]
)
def test_what_cannot_be_parsed_says_nothing(content: bytes | None) -> None:
    """Broken, deep and missing files are not known; none is executed."""
    assert read_script(content) is None


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_script_can_be_read(content: bytes) -> None:
    """No file makes the reader fail."""
    read_script(content)


def test_formats_that_would_fill_memory_are_not_tried() -> None:
    """A width of a billion is refused, a normal format is applied, a wrong one says nothing."""
    assert printed_as(0.5, ".3f") == "0.500"
    assert printed_as(8, "") == "8"
    assert printed_as(1, "999999999d") is None
    assert printed_as(1.5, "d") is None


@pytest.mark.parametrize(
    ("description", "name", "value", "is_mentioned"),
    [
        ("embedding LR 0.6 to 0.8", "EMBEDDING_LR", 0.8, True),
        ("warm up for longer", "WARMUP", 0.1, True),
        ("halve batch 524K to 262K", "TOTAL_BATCH_SIZE", 262144, True),
        ("use 0.3", "SCALAR_LR", 0.3, True),
        ("warm up for longer", "SCALAR_LR", 0.3, False),
        ("", "SCALAR_LR", 0.3, False),
    ],
)
def test_mentions_are_generous(
    description: str, name: str, value: float, *, is_mentioned: bool
) -> None:
    """A word of the name or the new value is enough; where both are missing, that says something."""
    assert mentions(description, name, value) is is_mentioned


def test_logs_belong_to_rows_by_their_names(tmp_path: Path) -> None:
    """A commit or a row number names a log; what names none or two rows is told and not used."""
    table = rows_of("abcd123 1.0 4.0 keep a", "abcd999 1.0 4.0 keep b", "baseline 1.0 4.0 keep c")
    for name in ("abcd123.log", "run-0002.txt", "3", "abcd.log", "notes.md", "99.log"):
        (tmp_path / name).write_text("val_bpb: 1.0\n")
    (tmp_path / "row_3.log").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "1.log")
    logs = read_logs(tmp_path, table.rows)
    assert {number: log.file.name for number, log in logs.by_row.items()} == {
        1: "abcd123.log",
        2: "run-0002.txt",
        3: "3",
    }
    told = " ".join(logs.problems)
    for name in ("abcd.log: names several", "notes.md: names no", "99.log: names no", "row_3.log"):
        assert name in told
    with pytest.raises(UsageError):
        read_logs(tmp_path / "nowhere", table.rows)


def test_the_last_fact_of_a_log_counts(tmp_path: Path) -> None:
    """Carriage returns end lines, the last of a name wins, long lines and binary are passed over."""
    log = parse_log(
        tmp_path,
        b"depth: 7\rstep 1 loss 3\r\nval_bpb: 2.0\nval_bpb:   0.9979  \ndepth = 8\n"
        + b"x" * 10_000
        + b"\n\xff\0: 1\n"
        + b"a" * 64
        + b"  ./train.py\n",
    )
    assert log.facts == {"depth": "8", "val_bpb": "0.9979"}
    assert log.sums == {b"train.py": "a" * 64}


@given(st.binary(max_size=300))
def test_any_log_can_be_read(content: bytes) -> None:
    """No log makes the reader fail."""
    log = parse_log(Path("x"), content)
    json.dumps({**log.facts})


def test_logs_are_held_against_commits_and_rows(repo: Repo, tmp_path: Path) -> None:
    """A foreign hash, a constant of another value and another number are found; agreement, too."""
    source = b'DEPTH = 8\nprint(f"depth: {DEPTH}")\nprint(f"num_steps: {1}")\n'
    one = repo.commit({"train.py": source})
    two = repo.commit({"train.py": source}, "the same again")
    logs = tmp_path / "logs"
    logs.mkdir()
    digest = hashlib.sha256(source).hexdigest()
    crlf = hashlib.sha256(source.replace(b"\n", b"\r\n")).hexdigest()
    (logs / f"{one[:7]}.log").write_text(
        f"train_py_sha256: {crlf}\ndepth: 8\nnum_steps: 9\nnum_params_M: 50.3\n"
        "val_bpb: 0.9979004\npeak_vram_mb: 45060.2\n"
    )
    (logs / "2.log").write_text(
        f"{'0' * 64}  train.py\n{digest}  gone.py\ndepth: 9\nnum_params_M: 50.4\nval_bpb: 0.99\n"
    )
    (logs / "3.log").write_text("val_bpb: 0.97\npeak_vram_mb: 1024\n")
    table = rows_of(
        f"{one[:7]} 0.997900 44.0 keep a",
        f"{two[:7]} 0.980000 44.0 keep b",
        "0123abc 0.000000 0.0 crash c",
    )
    night = night_in(repo, table, logs)
    assert codes(night.found) == [
        (2, "constant-differs"),
        (2, "log-differs"),
        (2, "ran-other-bytes"),
        (2, "same-code-other-fact"),
        (2, "same-code-other-fact"),
        (3, "commit-missing"),
        (3, "log-differs"),
    ]
    assert night.agreed == {1}
    assert "2 of 3 commits still exist" in summary(night)
    assert "for 2 rows: no log says so" in summary(night)


# -- a real night --------------------------------------------------------------------------------


def test_a_bare_night_under_a_rewriter(repo: Repo, tmp_path: Path) -> None:
    """A real loop, a real process that rewrites after each commit: the audit tells what happened."""
    repo.commit({"train.py": SCRIPT, ".gitignore": "results.tsv\nrun.log\n"}, "start")
    hook = repo.path / ".git" / "hooks" / "post-commit"
    hook.write_text("#!/bin/sh\nsed -i 's/^SCALAR_LR = .*/SCALAR_LR = 0.3/' train.py\n")
    hook.chmod(0o755)
    logs = tmp_path / "logs"
    logs.mkdir()
    ideas = tmp_path / "ideas.tsv"
    ideas.write_text(
        "warm up for longer\ts/^WARMUP = .*/WARMUP = 0.1/\n"
        "wider model\ts/^WIDTH = .*/WIDTH = 5/\n"
        "narrow model\ts/^WIDTH = .*/WIDTH = 2/\n"
        "broken\ts/^WIDTH = .*/WIDTH = 0; 1\\/0/\n"
    )
    run = 'python3 train.py 2>&1 | tee "$LOGS/$(git rev-parse --short HEAD).log"'
    subprocess.run(
        ["sh", str(LOOP), str(ideas)],
        cwd=repo.path,
        env=os.environ | WHO | {"RUN": run, "LOGS": str(logs)},
        check=True,
        capture_output=True,
    )
    table = parse((repo.path / "results.tsv").read_bytes())
    assert [row.status for row in table.rows] == ["keep", "keep", "discard", "crash"]
    assert table.problems == ()
    night = night_in(repo, table, logs, contaminated=("1",))
    found = {(one.row, one.code): one.text for one in night.found}
    # The first commit holds 0.5 and 0.3 ran; the second took the 0.3 along, and no word of it.
    assert "train.py ran as" in found[1, Code.RAN_OTHER_BYTES]
    assert "scalar_lr: 0.3, the commit has SCALAR_LR = 0.5" in found[1, Code.CONSTANT_DIFFERS]
    assert "SCALAR_LR 0.5 to 0.3" in found[2, Code.UNMENTIONED_CHANGE]
    assert "WIDTH" not in found[2, Code.UNMENTIONED_CHANGE]
    assert (2, Code.RAN_OTHER_BYTES) not in found
    assert (2, Code.DECIDED_ON) in found
    assert (2, Code.INHERITS) in found
    assert (3, Code.UNREACHABLE) in found
    assert night.agreed == {2, 3}
    assert night.repeat == (1,)
    assert summary(night).startswith("4 rows: 2 kept, 1 discarded, 1 crashed; 4 of 4 commits")


# -- suspects ------------------------------------------------------------------------------------


def run_of(name: str, value: float, commit: str = "", **fields: Any) -> Measured:  # noqa: ANN401 - of Measured
    """Return a run with a number; its commit is its name, unless given."""
    return Measured(
        **{
            "run": name,
            "commit": commit or name,
            "metric": "val_bpb",
            "value": value,
            "maximize": False,
            "trusted": True,
            **fields,
        }
    )


def never(commit: str, ancestor: str) -> bool:
    """Say that no commit is built on another."""
    return commit == ancestor == ""


def test_what_was_compared_with_a_contaminated_number() -> None:
    """Suspect is what came while a contaminated number was the best, until a better one counted."""
    runs = [
        run_of("a", 1.0),
        run_of("b", 0.8, trusted=False),
        run_of("c", 0.9),
        run_of("d", 0.7),
        run_of("e", 0.75),
    ]
    found = suspects(runs, never)
    assert found.contaminated == found.repeat == ("b",)
    assert found.compared == {"c": "b", "d": "b"}


def test_a_contaminated_number_that_was_never_the_best_decides_only_itself() -> None:
    """It was discarded on its own number; nothing else was compared with it."""
    found = suspects([run_of("a", 1.0), run_of("b", 1.5, trusted=False), run_of("c", 0.9)], never)
    assert (found.compared, found.repeat) == ({}, ("b",))


def test_a_commit_that_was_measured_again_needs_no_repetition() -> None:
    """A number that counts replaces one that does not, even if worse; before it all is suspect."""
    runs = [
        run_of("a", 1.0),
        run_of("b", 0.8, trusted=False),
        run_of("c", 0.9),
        run_of("b2", 1.2, commit="b"),
        run_of("d", 0.95),
    ]
    found = suspects(runs, never)
    assert (found.contaminated, found.repeat) == (("b",), ())
    assert found.compared == {"c": "b"}


def test_a_commit_contaminated_twice_is_repeated_once() -> None:
    """The fewest repetitions: one for each commit."""
    runs = [
        run_of("a", 1.0, commit="x", trusted=False),
        run_of("b", 1.1, commit="x", trusted=False),
    ]
    assert suspects(runs, never).repeat == ("a",)


def test_metrics_are_compared_with_their_own_kind() -> None:
    """Another metric, another direction and an unknown one are compared with nothing."""
    runs = [
        run_of("a", 1.0, trusted=False),
        run_of("b", 2.0, metric="loss"),
        run_of("c", 2.0, maximize=True),
        run_of("d", 2.0, maximize=None),
    ]
    assert suspects(runs, never).compared == {}


def test_foreign_bytes_in_a_commit_pass_on_and_no_repetition_cures_them() -> None:
    """Runs built on such a commit are listed apart, and it is not to be repeated."""
    runs = [run_of("a", 1.0, trusted=False, foreign=True), run_of("b", 0.9), run_of("c", 0.8)]
    found = suspects(runs, lambda commit, ancestor: (commit, ancestor) == ("b", "a"))
    assert (found.inherits, found.repeat) == ({"b": "a"}, ())


_RUNS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(0, 9), st.booleans()), max_size=12
).map(
    lambda drawn: [
        run_of(f"r{number}", float(value), commit=commit, trusted=trusted)
        for number, (commit, value, trusted) in enumerate(drawn)
    ]
)


@given(_RUNS)
def test_repeating_what_is_listed_leaves_no_number_that_does_not_count(
    runs: list[Measured],
) -> None:
    """Once each listed run has a number that counts, none is left to repeat; one fewer leaves one."""
    listed = suspects(runs, never).repeat
    by_name = {run.run: run for run in runs}
    again = [run_of(f"again-{name}", 5.0, commit=by_name[name].commit) for name in listed]
    assert suspects([*runs, *again], never).repeat == ()
    for left in range(len(again)):
        fewer = again[:left] + again[left + 1 :]
        assert len(suspects([*runs, *fewer], never).repeat) == 1


@given(_RUNS)
def test_without_contamination_nothing_is_suspect(runs: list[Measured]) -> None:
    """Trusted numbers alone make no suspect, whatever their order."""
    trusted = [run for run in runs if run.trusted]
    found = suspects(trusted, never)
    assert (found.compared, found.repeat, found.contaminated) == ({}, (), ())


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def sealrun(repo: Repo, tmp_path: Path) -> Cli:
    """Give sealrun in a repository with one commit."""
    repo.commit({"train.py": SCRIPT})
    return Cli(repo.path, tmp_path / "home", {"TZ": "UTC"})


def test_the_command_judges_and_leaves_nothing_behind(sealrun: Cli, repo: Repo) -> None:
    """Findings are data: status 0, the summary first; no id, no state, no ref is made."""
    commit = repo.git("rev-parse", "--short", "HEAD")
    file = repo.path / "results.tsv"
    file.write_text(
        f"{HEADER}\nbaseline\t1.0\t4.0\tkeep\tbaseline\n{commit}\t1.1\t4.0\tkeep\ta\tb\n"
        "0123abc\t0.9999\t4.0\tdiscard\tx\n0123abd\t1.2\t4.0\tdiscard\ty\n"
    )
    before = repo.git("for-each-ref")
    done = sealrun("audit", "--results", "results.tsv", "--noise", "3e-4")
    first, *rest = done.stdout.splitlines()
    assert first.startswith(
        "4 rows: 2 kept, 2 discarded, 0 crashed; 1 of 3 commits still exist; not"
    )
    shown = "\n".join(rest)
    assert "line 3: 6 fields" in shown
    assert "row 2 (line 3): kept at 1.1 against 1 of row 1 [kept-no-better]" in shown
    assert "rows 3-4: the commit is not in this repository [commit-missing]" in shown
    document = sealrun.json("audit", "--results", "results.tsv")["audit"]
    assert document["summary"]["existing"] == 1
    assert [row["state"] for row in document["rows"]] == [
        "no-id",
        "reachable",
        "missing",
        "missing",
    ]
    assert {one["code"] for one in document["findings"]} <= set(MEANINGS)
    assert not (repo.path / ".git" / "sealrun").exists()
    assert repo.git("for-each-ref") == before
    assert not (sealrun.home / "state").exists()


def test_outside_a_repository_the_table_is_judged_by_itself(tmp_path: Path) -> None:
    """Without a repository nothing is known of commits, and that is said."""
    (tmp_path / "results.tsv").write_text(f"{HEADER}\nabcd123\t1.0\t4.0\tkeep\tx\n")
    cli = Cli(tmp_path, tmp_path / "home", {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)})
    done = cli("audit", "--results", "results.tsv")
    assert "there is no repository here" in done.stdout
    assert "judged by itself" in done.stderr


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "empty", "other", "large"])
def test_what_cannot_be_read_is_a_usage_error(sealrun: Cli, tmp_path: Path, kind: str) -> None:
    """No file, no regular file, no table in it or a monstrous one: status 2, and nothing hangs."""
    file = tmp_path / "results.tsv"
    if kind == "directory":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "large":
        with file.open("wb") as stream:
            stream.truncate((64 << 20) + 1)
    elif kind != "missing":
        file.write_bytes(b"" if kind == "empty" else bytes(range(256)) * 10)
    done = sealrun("audit", "--results", str(file), status=2, timeout=60)
    assert "[sealrun] error: --results" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--noise", "1"),
        ("--logs", "."),
        ("--contaminated", "1"),
        ("--results", "results.tsv", "--noise", "-1"),
        ("--results", "results.tsv", "--noise", "nan"),
        ("--results", "results.tsv", "--contaminated", "7"),
        ("--results", "results.tsv", "--contaminated", "ffff"),
        ("--results", "results.tsv", "--logs", "nowhere"),
    ],
)
def test_a_wrong_call_is_explained(sealrun: Cli, arguments: tuple[str, ...]) -> None:
    """Options without a table, impossible noise and rows that are not there are usage errors."""
    (sealrun.directory / "results.tsv").write_text(f"{HEADER}\nabcd123\t1.0\t4.0\tkeep\tx\n")
    assert "[sealrun] error: " in sealrun("audit", *arguments, status=2).stderr


@pytest.mark.parametrize("text", list(HOSTILE.values()), ids=list(HOSTILE))
def test_hostile_text_reaches_no_terminal(sealrun: Cli, text: str) -> None:
    """What a table says is shown, never obeyed; JSON stays ASCII."""
    raw = os.fsencode(text.replace("\ud800", "").replace("\udfff", ""))
    row = b"\t".join([raw[:200], b"1.0", b"4.0", raw[:200], raw])
    logs = sealrun.directory / "logs"
    logs.mkdir()
    (logs / "notes\x1b[2J").write_bytes(raw)
    (sealrun.directory / "results.tsv").write_bytes(HEADER.encode() + b"\n" + row + b"\n")
    arguments = ("audit", "--results", "results.tsv", "--logs", "logs")
    done = sealrun(*arguments)
    assert all(c == "\n" or c.isprintable() for c in done.stdout + done.stderr)
    sealrun(*arguments, "--json").stdout.encode("ascii")


def test_no_record_is_no_error(sealrun: Cli) -> None:
    """Without runs there is nothing to suspect."""
    assert "no runs yet" in sealrun("audit").stderr
    assert sealrun.json("audit")["suspects"]["repeat"] == []


@pytest.mark.parametrize("severity", [None, "note"])
def test_the_record_names_what_rests_on_a_number_that_does_not_count(
    sealrun: Cli, repo: Repo, severity: str | None
) -> None:
    """From the first contaminated number on: what was compared with it, built on it, is to repeat.

    A commit that holds foreign bytes counts under no policy, also where it is merely noted.
    """
    identity = repository_id(repo.path / ".git")
    assert identity is not None
    foreign = Judgement(
        kind="flagged", reasons=(Because(code="contains-foreign", severity=severity),)
    )
    changed = Judgement(kind="flagged", reasons=(Because(code="data-changed"),))
    noted = Judgement(kind="flagged", reasons=(Because(code="edit-unattributed"),))
    told = (
        (1.0, noted),
        (0.8, changed),
        (0.9, Judgement(kind="clean")),
        (0.7, foreign),
        (0.6, Judgement(kind="clean")),
    )
    runs: list[str] = []
    with ledger_at(sealrun.places.ledger(identity), identity) as ledger:
        for number, (value, judged) in enumerate(told):
            opening = opened(commit=repo.commit({"train.py": f"A = {number}\n"}))
            assert opening.run is not None
            ledger.append(opening)
            metric = MetricFacts(name="val_bpb", value=value, direction="minimize")
            ledger.append(ended(opening.run, verdict=judged, metric=metric))
            runs.append(opening.run)
        refused = opened()
        assert refused.run is not None
        ledger.append(refused)
        ledger.append(ended(refused.run, "refused", outcome="not-started"))
        shortest = ledger.shortest(runs[1])
    found = sealrun.json("audit")["suspects"]
    assert found == {
        "numbers": 5,
        "contaminated": [runs[1], runs[3]],
        "compared": {runs[2]: runs[1], runs[3]: runs[1], runs[4]: runs[3]},
        "inherits": {runs[4]: runs[3]},
        "repeat": [runs[1]],
    }
    lines = sealrun("audit").stdout.splitlines()
    assert lines[0].startswith("5 runs with a number: 2 do not count, 3 were compared")
    assert any(line.strip().startswith(shortest) for line in lines)


def test_row_numbers_as_a_person_reads_them() -> None:
    """Neighbours are a range."""
    assert ranges([3]) == "row 3"
    assert ranges([7, 1, 3, 2, 9]) == "rows 1-3, 7, 9"


def test_each_code_says_what_it_means() -> None:
    """The set of codes is closed and each has its sentence."""
    assert set(MEANINGS) == set(Code)
