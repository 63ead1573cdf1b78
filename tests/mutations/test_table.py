"""The manual's table of techniques is the corpus's own."""

from __future__ import annotations

from mutations.table import PAGE, page


def test_the_table_is_up_to_date() -> None:
    """The page holds what the corpus states; ``python tests/mutations/table.py`` writes it anew."""
    assert PAGE.read_text("utf-8") == page()
