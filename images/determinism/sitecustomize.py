"""Runs first in each Python of a run: notes what decides its numbers, and sets what was asked for.

Rules that this module keeps:

- It never ends an experiment: whatever goes wrong here is left out of the notes, silently.
- Under ``record`` it changes nothing that a program computes with. It looks right after the program
  has imported torch, and once more at the program's end.
- Devices are asked about only where the program itself has initialised CUDA: asking makes a context
  and would break a later fork.
- Its directory leaves ``sys.path`` before anything is imported from there, and a ``sitecustomize``
  that the image itself brings runs afterwards as if this one were not there.
- Python 3.8 or later, the standard library alone: it runs in whatever an image holds.
"""

# ruff: noqa: PTH100, PTH103, PTH105, PTH118, PTH120, PTH123 - pathlib slows each Python's start
# ruff: noqa: E402 - the path is set right before anything else is imported
# ruff: noqa: PLW0108 - a library may lack any of these names: they are looked up where that is caught
# ruff: noqa: ANN401 - torch and numpy are not there when this is checked

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import atexit
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.machinery import ModuleSpec
    from typing import Any

#: ``MODE:SEED``, and the directory of the notes; the host sets both.
_ASKED = "SEALRUN_DETERMINISM"
_NOTES = "SEALRUN_NOTES"


class _AfterImport:
    """A finder that lets the others find a module, and acts once that module is loaded."""

    def __init__(self, acts: Mapping[str, Callable[[Any], None]]) -> None:
        self._acts = acts

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        act = self._acts.get(name)
        if act is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return _acting(spec, act)
        return None


def _acting(spec: ModuleSpec, act: Callable[[Any], None]) -> ModuleSpec:
    # On the loader's own instance: its class, and so whatever asks for it, stays as it is.
    load = getattr(spec.loader, "exec_module", None)
    if load is None:
        return spec

    def exec_module(module: Any) -> None:
        load(module)
        _quietly(act, module)

    _quietly(setattr, spec.loader, "exec_module", exec_module)
    return spec


def _quietly(act: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return act(*arguments)
    except Exception:  # noqa: BLE001 - an experiment must not fail because of its notes
        return None


def _note(torch: Any) -> None:
    asked: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("version", lambda: str(torch.__version__)),
        ("cuda", lambda: torch.version.cuda),
        ("hip", lambda: torch.version.hip),
        ("threads", lambda: torch.get_num_threads()),
        ("interop_threads", lambda: torch.get_num_interop_threads()),
        ("cpu_capability", lambda: torch.backends.cpu.get_cpu_capability()),
        ("mkl", lambda: torch.backends.mkl.is_available()),
        ("onednn", lambda: torch.backends.mkldnn.is_available()),
        ("deterministic", lambda: torch.are_deterministic_algorithms_enabled()),
        ("seed", lambda: torch.initial_seed()),
    )
    if _quietly(lambda: torch.cuda.is_initialized()):
        asked += (
            ("cudnn", lambda: torch.backends.cudnn.version()),
            ("cudnn_benchmark", lambda: bool(torch.backends.cudnn.benchmark)),
            ("driver", lambda: torch._C._cuda_getDriverVersion()),  # noqa: SLF001 - no public name
            ("devices", lambda: _devices(torch.cuda)),
        )
    facts = {name: _quietly(ask) for name, ask in asked}
    _write({"python": sys.version.split()[0], "torch": facts})


def _devices(cuda: Any) -> list[dict[str, Any]]:
    return [_device(cuda.get_device_properties(n)) for n in range(cuda.device_count())]


def _device(properties: Any) -> dict[str, Any]:
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
    }


def _write(facts: Mapping[str, Any]) -> None:
    directory = os.environ.get(_NOTES)
    if not directory:
        return
    import json

    os.makedirs(directory, exist_ok=True)
    target = os.path.join(directory, f"{os.getpid()}.json")
    with open(target + ".draft", "w", encoding="ascii") as file:
        json.dump(facts, file)
    os.replace(target + ".draft", target)


def _at_end() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        _quietly(_note, torch)


def _be_strict(torch: Any) -> None:
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 - torch's own signature
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _begin() -> None:
    mode, _, number = os.environ.get(_ASKED, "").partition(":")
    if mode not in ("record", "seeded", "strict"):
        return
    seed = int(number or 0)

    def torch_came(torch: Any) -> None:
        if mode != "record":
            _quietly(lambda: torch.manual_seed(seed))
        if mode == "strict":
            _quietly(_be_strict, torch)
        _note(torch)

    acts: dict[str, Callable[[Any], Any]] = {"torch": torch_came}
    if mode != "record":
        acts["random"] = lambda random: random.seed(seed)
        acts["numpy.random"] = lambda random: random.seed(seed)
    # What was imported before us is not imported again.
    for name in [name for name in acts if name in sys.modules]:
        _quietly(acts.pop(name), sys.modules[name])
    sys.meta_path.insert(0, _AfterImport(acts))
    atexit.register(_at_end)


def _next() -> None:
    """Run the ``sitecustomize`` that would have been found without this one."""
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_quietly(_begin)
_next()
