"""Foreign bytes in a commit: found as a whole and in parts, and never where there are none."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _laundering import BASE, RUFF, change, found, tree_of
from sealrun.alerts.hunks import CELLS, hunks, lines_of, pairs
from sealrun.alerts.laundering import Foreign, contained
from sealrun.tree import blob_id

TRAIN = b"""\
import math
import torch

EMBEDDING_LR = 0.6
UNEMBEDDING_LR = 0.004
SCALAR_LR = 0.5
WEIGHT_DECAY = 0.2

def step(model, batch):
    loss = model(batch)
    loss.backward()
    return loss


for epoch in range(3):
    if epoch:
        step(None, epoch)
    else:
        pass
"""
MUTATED = TRAIN.replace(b"SCALAR_LR = 0.5", b"SCALAR_LR = 0.3")


def lines(text: str) -> bytes:
    """Return lines without the indentation that a test gives them."""
    return textwrap.dedent(text).encode()


# -- what has to be found ------------------------------------------------------------------------


def test_the_loop_commits_the_foreign_bytes() -> None:
    """The story: the 0.3 that somebody wrote is in the commit, named by line, with its cure."""
    (hit,) = found(TRAIN, MUTATED, MUTATED)
    assert (hit.alert, hit.path, hit.how, hit.lines) == ("A1", b"train.py", "blob", (6,))
    assert hit.restore == (
        "--- train.py (commit)",
        "+++ train.py (restored)",
        "@@ line 6 @@",
        " UNEMBEDDING_LR = 0.004",
        "-SCALAR_LR = 0.3",
        "+SCALAR_LR = 0.5",
        " WEIGHT_DECAY = 0.2",
    )
    assert hit.writer is RUFF


@pytest.mark.parametrize(
    "edits",
    [
        ((b"WEIGHT_DECAY = 0.2", b"WEIGHT_DECAY = 0.1"),),
        ((b"UNEMBEDDING_LR = 0.004\n", b"UNEMBEDDING_LR = 0.008\n# tuned\n"),),
        ((b"UNEMBEDDING_LR = 0.004\n", b""), (b"WEIGHT_DECAY = 0.2\n", b"")),
        ((b"EMBEDDING_LR = 0.6", b"EMBEDDING_LR = 0.7"), (b"range(3)", b"range(4)")),
        ((b"import math\n", b"import math\nimport os\n" * 30),),
        ((b"SCALAR_LR = 0.3\n", b""), (b"import torch\n", b"import torch\nSCALAR_LR = 0.3\n")),
        ((b"\n", b"\r\n"), (b"range(3)", b"range(4)")),
    ],
    ids=["below", "above", "both gone", "far", "many new lines", "moved", "other line ends"],
)
def test_the_loops_own_edits_hide_nothing(edits: tuple[tuple[bytes, bytes], ...]) -> None:
    """The foreign line is found with the loop's edits beside it, around it, or after a move."""
    committed = MUTATED
    for old, new in edits:
        assert old in committed
        committed = committed.replace(old, new)
    (hit,) = found(TRAIN, MUTATED, committed)
    assert hit.how == "hunk"
    assert [lines_of(committed)[n - 1] for n in hit.lines] == [b"SCALAR_LR = 0.3"]
    assert "-SCALAR_LR = 0.3" in hit.restore
    assert "+SCALAR_LR = 0.5" in hit.restore


def test_lines_taken_out_are_found_by_their_gap() -> None:
    """A deletion that the loop adopted is found, also where it edited a line beside the gap."""
    cut = TRAIN.replace(b"    loss.backward()\n", b"")
    again = cut.replace(b"loss = model(batch)", b"loss = model(batch, training=True)")
    for committed in (cut + b"# more\n", again):
        (hit,) = found(TRAIN, cut, committed)
        assert hit.lines == (11,)
        assert "+    loss.backward()" in hit.restore


def test_a_gap_of_the_loops_own_is_not_foreign() -> None:
    """A line that the loop replaced by another, or moved, was not taken out by somebody else."""
    cut = TRAIN.replace(b"    loss.backward()\n", b"")
    replaced = TRAIN.replace(b"    loss.backward()\n", b"    (loss / 2).backward()\n")
    moved = cut.replace(b"    return loss\n", b"    return loss\n    loss.backward()\n")
    rewritten = TRAIN.replace(b"    loss.backward()\n    return loss\n", b"    yield from batch\n")
    for committed in (replaced, moved, rewritten):
        assert found(TRAIN, cut, committed) == ()


def test_a_file_that_was_taken_away() -> None:
    """A foreign removal in the commit is found; a file that only moved was not removed."""
    gone = Foreign("A1", b"train.py", TRAIN, None, RUFF, base=BASE, removed=True)
    (hit,) = contained(tree_of({"other.py": b"x = 1\n"}), [gone])
    assert (hit.how, hit.path, hit.lines) == ("blob", b"train.py", ())
    assert BASE in hit.restore[0]
    assert contained(tree_of({"train.py": MUTATED}), [gone]) == ()
    assert contained(tree_of({"model.py": TRAIN}), [gone]) == ()


def test_under_another_name() -> None:
    """A renamed file, a copy, and a line that moved to a new file are found with where they came from."""
    (renamed,) = found(TRAIN, MUTATED, {"model.py": MUTATED})
    assert (renamed.how, renamed.path, renamed.origin) == ("blob", b"model.py", b"train.py")
    edited = MUTATED.replace(b"range(3)", b"range(4)")
    (hit,) = found(TRAIN, MUTATED, {"model.py": edited, "a.py": b"x = 1\n"})
    assert (hit.how, hit.path, hit.lines) == ("hunk", b"model.py", (6,))
    (copy,) = found(TRAIN, MUTATED, {"train.py": TRAIN, "copy.py": MUTATED})
    assert (copy.how, copy.path) == ("blob", b"copy.py")
    without = TRAIN.replace(b"SCALAR_LR = 0.5\n", b"from config import SCALAR_LR\n")
    (moved,) = found(TRAIN, MUTATED, {"train.py": without, "config.py": b"SCALAR_LR = 0.3\n"})
    assert (moved.how, moved.path, moved.lines) == ("hunk", b"config.py", (1,))


def test_line_ends_of_a_whole_file() -> None:
    """A file whose line ends somebody changed is found though the loop edited it since."""
    windows = TRAIN.replace(b"\n", b"\r\n")
    (hit,) = found(TRAIN, windows, windows.replace(b"0.6", b"0.7"))
    assert hit.lines == ()
    assert "end with CRLF as the foreign writer left them, not with LF" in hit.restore[0]
    # What git converts on the way in is not in the commit.
    assert found(TRAIN, windows, TRAIN.replace(b"0.6", b"0.7")) == ()


def test_binary_content_is_compared_as_a_whole() -> None:
    """A binary file is found by its bytes, under any name, and not in parts."""
    before, after = bytes(range(256)) * 8, bytes(reversed(range(256))) * 8
    (hit,) = found(before, after, after)
    assert (hit.how, hit.lines) == ("blob", ())
    assert BASE in hit.restore[0]
    assert [one.path for one in found(before, after, {"weights.bin": after})] == [b"weights.bin"]
    assert found(before, after, after + b"\0") == ()


def test_bytes_that_were_not_kept_are_found_by_their_id() -> None:
    """Where evidence is missing or was cut, git's id of the whole content still finds it."""
    lost = Foreign("A1", b"train.py", None, None, RUFF, blob=blob_id(MUTATED))
    (hit,) = contained(tree_of({"train.py": MUTATED}), [lost])
    assert hit.how == "blob"
    assert contained(tree_of({"train.py": TRAIN, "copy.py": MUTATED}), [lost]) == ()


def test_one_short_line_is_found_at_its_place() -> None:
    """A line of two letters counts where the foreign writer put it, whatever stands around it."""
    before = lines("a = 1\nn = 4\nb = 2\n")
    after = before.replace(b"n = 4", b"n = 3")
    (hit,) = found(before, after, after.replace(b"b = 2", b"b = 7"))
    assert hit.lines == (2,)


def test_the_same_content_of_two_alerts_is_told_once() -> None:
    """Two alerts about the same bytes are one finding; different ones are two."""
    other = TRAIN.replace(b"WEIGHT_DECAY = 0.2", b"WEIGHT_DECAY = 0.0")
    both = MUTATED.replace(b"WEIGHT_DECAY = 0.2", b"WEIGHT_DECAY = 0.0")
    foreign = [
        change(TRAIN, MUTATED, alert="A1"),
        change(TRAIN, MUTATED, alert="A2"),
        change(TRAIN, other, alert="A3"),
    ]
    hits = contained(tree_of({"train.py": both}), foreign)
    assert [(hit.alert, hit.lines) for hit in hits] == [("A1", (6,)), ("A3", (7,))]


# -- what must not be found ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "committed"),
    [
        (MUTATED, TRAIN),
        (MUTATED, TRAIN.replace(b"0.5", b"0.6")),
        (MUTATED, TRAIN.replace(b"range(3)", b"range(0.3)")),
        (TRAIN.replace(b"\ndef", b"\n\n\ndef"), TRAIN.replace(b"\nfor", b"\n\n\nfor")),
        (TRAIN.replace(b"\ndef", b"\n\n\ndef"), TRAIN.replace(b"\ndef", b"\n\n\n\ndef")),
        (TRAIN + b"try:\n    pass\n", TRAIN + b"# own\ntry:\n    pass\n"),
        (TRAIN.replace(b"import math\n", b"") + b"import math\n", TRAIN + b"import sys\n"),
        (TRAIN.replace(b"import math\n", b"import math\nimport os\n"), TRAIN + b"import os\n"),
        (TRAIN, TRAIN + b"x = 1\n"),
    ],
    ids=[
        *("restored", "another value", "the value elsewhere", "blank lines", "more blank lines"),
        *("keywords", "moved by them", "a common line elsewhere", "no change"),
    ],
)
def test_an_unrelated_commit_is_clean(after: bytes, committed: bytes) -> None:
    """Restored bytes, other values, blank lines, keywords and common lines elsewhere raise nothing."""
    assert found(TRAIN, after, committed) == ()


def test_what_stood_elsewhere_before_is_not_foreign() -> None:
    """Bytes that another path held when the foreign writer copied them are not looked for there."""
    other = MUTATED.replace(b"import math", b"import cmath")
    files = {"train.py": TRAIN, "other.py": other}
    assert found(TRAIN, other, files, base={"other.py": other}) == ()
    edited = {"train.py": TRAIN.replace(b"0.5", b"0.9"), "other.py": other + b"# more\n"}
    assert found(TRAIN, other, edited, base={"other.py": other}) == ()


def test_a_trivial_file_is_no_copy() -> None:
    """An empty or tiny file is found at its own path alone."""
    for content in (b"", b"\n", b"x = 1\n"):
        assert found(TRAIN, content, {"train.py": TRAIN, "__init__.py": content}) == ()
        assert len(found(TRAIN, content, content)) == 1


def test_the_loop_may_choose_other_bytes_beside_a_formatter() -> None:
    """Ideas on top of the restored file are clean, however many formatter's changes are open."""
    formatted = TRAIN.replace(b"(3)", b"(\n    3,\n)").replace(b"if epoch:", b"if (epoch):")
    for idea in (b"0.7", b"0.8", b"0.9"):
        assert found(TRAIN, formatted, TRAIN.replace(b"0.6", idea)) == ()


# -- real formatters -----------------------------------------------------------------------------

UGLY = b"""\
import torch, math
from os import path
x = { 'a':1,'b' : [1,2,3] }
def train( model,data, lr = 0.1,*, decay=0.01, warmup = 100, schedule='cosine', batch_size=128 ):
    result=model( data,lr,decay )
    if not result is None :
        return   [ result , math.pi ]
class Net( torch.nn.Module ):
    def forward( self,x ): return x
"""


def formatted(tool: str, folder: Path, content: bytes) -> bytes:
    """Run a real formatter on a file, as an editor would; return what it left."""
    program = shutil.which(tool, path=str(Path(sys.executable).parent))
    assert program is not None, f"{tool} is missing: install the development dependencies"
    arguments = {
        "ruff": ["format", "--isolated", "--no-cache", "--quiet"],
        "black": ["--quiet"],
        "isort": ["--quiet"],
        "autopep8": ["--in-place"],
    }
    file = folder / "train.py"
    file.write_bytes(content)
    subprocess.run([program, *arguments[tool], str(file)], check=True, cwd=folder)
    return file.read_bytes()


@pytest.mark.parametrize("tool", ["ruff", "black", "isort", "autopep8"])
def test_what_a_formatter_did_is_found_under_the_next_edit(tool: str, tmp_path: Path) -> None:
    """A real formatter's change is found in a commit that edits the file further, and only there."""
    foreign = formatted(tool, tmp_path, UGLY)
    assert foreign != UGLY
    later = foreign.replace(b"0.01", b"0.02") + b"# an idea\n"
    (hit,) = found(UGLY, foreign, later)
    assert hit.how == "hunk"
    assert hit.lines
    own = UGLY.replace(b"0.01", b"0.02").replace(b"1,2,3", b"1,2,4") + b"# an idea\n"
    assert found(UGLY, foreign, own) == ()


# -- for all contents ----------------------------------------------------------------------------

_CONTENT = st.lists(st.sampled_from([b"", b")", b"x", b"y = 1", b"import os"]), max_size=30)


@given(_CONTENT, _CONTENT)
def test_hunks_turn_one_content_into_the_other(before: list[bytes], after: list[bytes]) -> None:
    """Applied to the one content the hunks give the other, and the pairs are equal lines, rising."""
    result: list[bytes] = []
    place = 0
    for hunk in hunks(before, after):
        result += before[place : hunk.start] + after[hunk.at : hunk.to]
        place = hunk.end
    assert result + before[place:] == after
    same = pairs(before, after)
    assert all(before[one] == after[other] for one, other in same)
    assert same == sorted(same)
    assert len({one for one, _ in same}) == len({other for _, other in same}) == len(same)


_LINE = st.text("abcdef =().'\t\0\r\u00e9", max_size=12)
_FILE = st.lists(_LINE, max_size=25).map(lambda ls: "\n".join(ls).encode())


@given(_FILE, _FILE, _FILE)
def test_the_content_before_is_never_foreign(before: bytes, after: bytes, other: bytes) -> None:
    """Whatever was written, a commit of what stood before is clean, and one of the whole is found."""
    assert found(before, after, {"train.py": before, "other.py": other}, {"other.py": other}) == ()
    if before != after:
        hits = found(before, after, after)
        assert [hit.how for hit in hits] == ["blob"]
        assert all(hit.restore for hit in hits)


@given(
    st.lists(st.integers(0, 999), min_size=6, max_size=40, unique=True),
    st.data(),
)
def test_a_replaced_line_is_found_under_any_edit_around_it(
    numbers: list[int], data: st.DataObject
) -> None:
    """A foreign line is found as long as it stands, whatever the loop changes, adds or removes."""
    before = [f"parameter_{n} = {n}" for n in numbers]
    place = data.draw(st.integers(0, len(before) - 1))
    after = list(before)
    after[place] += "  # foreign"
    mine = data.draw(
        st.lists(st.integers(0, len(before) - 1), max_size=6).filter(lambda x: place not in x)
    )
    committed: list[str] = []
    for number, line in enumerate(after):
        choice = data.draw(st.sampled_from(["keep", "edit", "drop", "add"]))
        if number not in mine or choice == "keep":
            committed.append(line)
        elif choice != "drop":
            committed += [line + "00"] if choice == "edit" else [line, f"mine_{number} = 1"]
    was, foreign, now = ("\n".join(one).encode() for one in (before, after, committed))
    (hit,) = found(was, foreign, now)
    if now != foreign:
        assert [committed[n - 1] for n in hit.lines] == [after[place]]


@given(_FILE, _FILE, _FILE, st.binary(max_size=200))
def test_any_bytes_can_be_asked_about(a: bytes, b: bytes, c: bytes, binary: bytes) -> None:
    """Nothing that a writer or a commit holds makes the search fail; its lines are in the file."""
    for before, after, committed in ((a, b, c), (a, binary, c), (binary, a, b + binary)):
        for hit in found(before, after, {"train.py": committed, "new.py": c}):
            content = {b"train.py": committed, b"new.py": c}[hit.path]
            assert all(1 <= n <= max(len(lines_of(content)), 1) for n in hit.lines)
            assert len(hit.restore) <= 40


# -- large ---------------------------------------------------------------------------------------


def test_the_work_of_one_comparison_is_bounded() -> None:
    """Contents made to be slow (the same lines, in other orders) fill no more than the budget."""
    from sealrun.alerts.hunks import _Pairing

    a, b = [b"a", b"b"] * 40_000, [b"b", b"a", b"a"] * 30_000
    pairing = _Pairing(a, b)
    before = len(sorted(pairing.all()))
    assert 0 <= pairing.cells <= CELLS
    assert before <= 80_000
    assert [h.end - h.start for h in hunks(a, b)] != []


def test_a_huge_file_is_compared_as_a_whole() -> None:
    """Above a mebibyte a file is found by its bytes, and no line of it is looked at."""
    before = b"".join(b"value_%d = %d\n" % (n, n) for n in range(60_000))
    assert len(before) > 1 << 20
    after = before.replace(b"value_7 = 7", b"value_7 = 8")
    assert [hit.lines for hit in found(before, after, after)] == [()]
    assert found(before, after, after + b"# mine\n") == ()


def test_a_long_file_of_short_lines() -> None:
    """Half a mebibyte of blank and equal lines with changes at both ends is searched to the end."""
    before = b"SCALAR = 1\n" + b"\n" * 200_000 + b"x\n" * 100_000 + b"EMBED = 2\n"
    after = before.replace(b"SCALAR = 1", b"SCALAR = 7").replace(b"EMBED = 2", b"EMBED = 9")
    (hit,) = found(before, after, b"# mine\n" + after)
    assert [lines_of(b"# mine\n" + after)[n - 1] for n in hit.lines] == [
        b"SCALAR = 7",
        b"EMBED = 9",
    ]
