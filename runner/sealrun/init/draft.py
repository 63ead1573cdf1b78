"""The policy that is proposed for a shape.

Rules that this module keeps:

- Pure: a ``Shape`` comes in, the text of ``sealrun.toml`` goes out, and the policy model accepts it.
- A value is written only where the shape says it; what is left out is the shipped policy's.
- Nothing that is proposed loosens the shipped policy.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sealrun.init.shape import Shape

POLICY = "sealrun.toml"
#: The shipped policy's base.
BASE = "debian-python"
#: The shipped base with a compiler and Python's headers.
_WITH_COMPILER = "debian-python-build"


def policy_text(shape: Shape) -> str:
    """Return the text of a policy for a shape."""
    return "\n".join(_lines(shape)) + "\n"


def _lines(shape: Shape) -> Iterator[str]:
    yield "# What a run is judged by. A commit that changes this file waits for a human."
    if shape.compiles:
        yield from ("", "[image]")
        yield f"base = {_string(_WITH_COMPILER)}  # with a compiler and Python's headers"
    if shape.deadline is not None:
        yield from ("", "[limits]")
        yield f'deadline = "{shape.deadline:.0f}s"'
    if shape.metric is not None and shape.metric.direction is not None:
        yield from ("", "[metric]")
        yield f"name = {_string(shape.metric.name)}"
        yield f"direction = {_string(shape.metric.direction)}"
    else:
        yield from ("", "# [metric]", '# name = "val_loss"  # the last line "val_loss: NUMBER"')
        yield '# direction = "minimize"'
    yield from ("", "[guard]")
    yield f"protected = [{', '.join(map(_string, (*shape.protected, POLICY)))}]"
    for source in shape.data:
        yield from ("", "[[data]]")
        yield f"source = {_string(source)}  # read-only"
    for kernel in shape.kernels:
        yield from ("", f"[[fetch]]  # code that {shape.script} loads; warm downloads and pins it")
        yield 'kind = "hub"'
        yield f"repository = {_string(kernel.repository)}"
        yield f"type = {_string(kernel.type)}"
        if kernel.revision is not None:
            yield f"revision = {_string(kernel.revision)}"
        if kernel.allow:
            yield f"allow = [{', '.join(map(_string, kernel.allow))}]"


def _string(text: str) -> str:
    # JSON's strings are TOML's basic strings; names here hold no control characters.
    return json.dumps(text, ensure_ascii=False)
