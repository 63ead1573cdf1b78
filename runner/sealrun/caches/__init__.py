"""Where compilers inside an experiment keep what they compiled, and what that begins with.

Rules that this package keeps:

- Each run has caches of its own, gone with its container: a writable cache that runs share is a
  channel between them, and code that one leaves there is run by the next.
- They are empty at the start, or, where the approved policy says so, begin with a copy of what one
  ``sealrun warm -- COMMAND`` left: a seed, immutable, known by its digest and on record.
- They are on scratch that files can be executed from, below one directory, and not in the workdir
  or ``/out``: what is compiled again at will is no output.
- Every cache named here is found by the program's own variable; a policy that sets the same
  variable has the last word.

``key`` says what a seed is good for, ``gather`` takes one out of a container's directory, ``store``
keeps and checks it, ``start`` gives it to a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Below a scratch file system (``sandbox.spec.SCRATCH``), whose size counts.
CACHES = "/var/tmp/caches"  # noqa: S108 - a path inside the container

#: What names each cache to its program. Sources: PyTorch, "Compile Time Caching Configuration"
#: and torch.utils.cpp_extension; Triton, ``knobs.py``; CUDA C++ Programming Guide, environment
#: variables; Numba and CuPy, reference of environment variables.
VARIABLES: Mapping[str, str] = {
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHES}/inductor",
    "TRITON_CACHE_DIR": f"{CACHES}/triton",
    "TORCH_EXTENSIONS_DIR": f"{CACHES}/torch-extensions",
    "CUDA_CACHE_PATH": f"{CACHES}/cuda",
    "NUMBA_CACHE_DIR": f"{CACHES}/numba",
    "CUPY_CACHE_DIR": f"{CACHES}/cupy",
}
