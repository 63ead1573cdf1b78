"""What sections of the user's own configuration files are made of; ``ownfile`` reads the files.

Rules that this module keeps:

- Unknown keys are errors, and no error repeats a value: a value may be a secret.
- A secret has exactly one source: a value in the file, a private file of its own (``…_file``) or a
  variable of the environment (``…_env``).
"""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _home(value: object) -> object:
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111 - Path.expanduser raises where there is no home


#: A path that is absolute, or begins with the user's home (``~``).
Absolute = Annotated[str, BeforeValidator(_home), Field(pattern=r"^/", max_length=4096)]
#: The name of a variable of the environment.
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
#: What the user calls one of several.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]


class Section(BaseModel):
    """One section of such a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def require_source(section: Section, name: str, *, needed: bool) -> None:
    """Refuse a secret with two sources, and one with none where it is needed.

    Args:
        section: has the attributes ``NAME``, ``NAME_file`` and ``NAME_env``.
        name: of the secret.
        needed: whether it has to be there.

    Raises:
        ValueError: which sources there are; pydantic makes it an error of the section.
    """
    names = (name, f"{name}_file", f"{name}_env")
    given = sum(getattr(section, one) is not None for one in names)
    if given > 1 or (needed and not given):
        wish = "exactly one" if needed else "at most one"
        raise ValueError(f"give {wish} of {', '.join(names)}")
