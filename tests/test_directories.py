"""Where directories stand and stood, and of whom in them nothing was seen: pure books."""

from __future__ import annotations

from sealrun.guard.directories import UNHEARD, Directories, Level

PATH = b"/w/pkg/deep/model.py"
ROOT, PKG, DEEP = b"/w", b"/w/pkg", b"/w/pkg/deep"
STANDING = {ROOT: b"R", PKG: b"P", DEEP: b"D"}


def _books() -> Directories:
    books = Directories()
    for position, directory in enumerate((ROOT, PKG, DEEP), 1):
        books.cover(directory, STANDING[directory], position, 0.0)
    return books


def _levels(
    books: Directories,
    standing: dict[bytes, bytes] = STANDING,
    since: int = 10,
    *,
    surely: bool = True,
) -> list[Level]:
    return books.levels(PATH, standing, since, surely=surely, why={b"/w/pkg/odd": "no handles"})


def test_each_directory_above_a_path_is_a_level() -> None:
    """Its own first; what stands above all that is marked is none."""
    found = _levels(_books(), {b"/": b"/", **STANDING})
    assert [(one.name, one.keys) for one in found] == [
        (b"model.py", (b"D",)),
        (b"deep", (b"P",)),
        (b"pkg", (b"R",)),
    ]
    assert {(one.came, one.unheard) for one in found} == {(None, None)}


def test_what_stands_there_counts_and_not_what_was_heard() -> None:
    """A directory that moved away and back is the same, whatever was heard of it meanwhile."""
    books = _books()
    books.leave(DEEP, 1.0)
    books.cover(b"/w/pkg/x", b"D", 11, 1.0)
    assert _levels(books)[0] == Level(b"model.py", (b"D",), None, None)


def test_what_was_marked_here_first_came_unseen() -> None:
    """One that came since then, unless it was marked where it came from."""
    books = _books()
    books.cover(DEEP, b"E", 11, 1.0)
    standing = STANDING | {DEEP: b"E"}
    own, *above = _levels(books, standing)
    assert own == Level(b"model.py", (b"E",), UNHEARD, None)
    assert {(one.came, one.unheard) for one in above} == {(None, None)}
    assert _levels(books, standing, 11)[0].came is None

    books = _books()
    books.cover(b"/w/other", b"E", 11, 1.0)
    books.cover(DEEP, b"E", 12, 1.0)
    assert _levels(books, standing)[0].came is UNHEARD, "it stands at two places"
    books.leave(b"/w/other", 1.0)
    assert _levels(books, standing)[0].came is None


def test_what_is_not_marked_is_unheard() -> None:
    """So is all below it, which may have been moved there unseen."""
    books = _books()
    own, pkg, _ = _levels(books, STANDING | {PKG: b"new"})
    assert (pkg.keys, pkg.unheard) == ((b"P",), UNHEARD), "what stood there may still explain it"
    assert own.unheard == UNHEARD
    books.cover(PKG, b"new", 11, 1.0)
    own, pkg, _ = _levels(books, STANDING | {PKG: b"new"})
    assert (pkg.came, pkg.unheard, own.unheard) == (UNHEARD, None, UNHEARD)
    books.cover(DEEP, b"E", 12, 1.0)
    own, *_ = _levels(books, STANDING | {PKG: b"new", DEEP: b"E"})
    assert (own.came, own.unheard) == (UNHEARD, None), "made there, and walked from above"


def test_what_cannot_be_marked_says_why() -> None:
    """A directory without handles has an empty key."""
    books = _books()
    standing = {ROOT: b"R", PKG: b"P", b"/w/pkg/odd": b""}
    own, *_ = books.levels(b"/w/pkg/odd/f", standing, 10, surely=True, why={b"/w/pkg/odd": "none"})
    assert own == Level(b"f", (), "none", "none")


def test_where_it_is_not_sure_what_stood_there_also_those_before_count() -> None:
    """What left is remembered until it is forgotten."""
    books = _books()
    books.leave(DEEP, 5.0)
    books.cover(DEEP, b"E", 11, 5.0)
    standing = STANDING | {DEEP: b"E"}
    assert _levels(books, standing, surely=False)[0].keys == (b"E", b"D")
    assert _levels(books, standing)[0].keys == (b"E",)
    assert books.left(5.0) == []
    assert books.left(6.0) == [(b"D", DEEP)]
    assert b"D" in books
    books.forget(b"D")
    assert b"D" not in books
    assert _levels(books, standing, surely=False)[0].keys == (b"E",)
    assert (books.since(b"E"), books.since(b"D")) == (11, -1)


def test_one_that_is_replaced_in_its_place_has_left() -> None:
    """Also where nothing was heard of its leaving; where it stands elsewhere it stays."""
    books = _books()
    books.cover(DEEP, b"E", 11, 5.0)
    assert books.left(6.0) == [(b"D", DEEP)]
    books.cover(b"/w/x", b"E", 12, 5.0)
    assert books.leave(DEEP, 5.0) is None
    assert books.leave(b"/w/x", 5.0) == b"E"
    assert books.leave(b"/w/x", 5.0) is None
