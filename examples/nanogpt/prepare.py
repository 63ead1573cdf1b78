"""The fixed half of the experiment: the data and the judge. Not to be edited by the loop.

The text is the source of the standard library of whichever Python runs this, so nothing has to be
downloaded. A file belongs to the training or to the validation part by the hash of its name, which
no edit of ``train.py`` can move. The score is bits per byte on the validation part: lower is
better, 8 is what knowing nothing costs.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor, nn

VOCABULARY = 256
CONTEXT = 64
#: Folders of the library that some distributions leave out or fill with others' packages.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
#: One file in this many is for validation.
VALIDATION_SHARE = 20
EVALUATION_WINDOWS = 512
EVALUATION_BATCH = 64


def is_validation(name: str) -> bool:
    """Whether the file of this name (relative, with slashes) is in the validation part."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % VALIDATION_SHARE == 0


def read_data() -> tuple[Tensor, Tensor]:
    """Return the training and the validation bytes, each as one tensor of type uint8."""
    library = Path(sysconfig.get_paths()["stdlib"])
    parts: dict[bool, bytearray] = {False: bytearray(), True: bytearray()}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if SKIPPED.isdisjoint(name.parts):
            parts[is_validation(name.as_posix())] += path.read_bytes()
    train, validation = (torch.frombuffer(parts[key], dtype=torch.uint8) for key in (False, True))
    return train, validation


@torch.no_grad()
def evaluate_bpb(model: nn.Module, validation: Tensor, device: torch.device) -> float:
    """Return the model's bits per byte on evenly spaced windows of the validation bytes.

    Args:
        model: takes a batch of byte values (int64) and returns logits over the next byte.
    """
    model.eval()
    stride = (len(validation) - CONTEXT - 1) // EVALUATION_WINDOWS
    starts = torch.arange(EVALUATION_WINDOWS) * stride
    windows = validation[starts[:, None] + torch.arange(CONTEXT + 1)].long()
    total = 0.0
    for batch in windows.to(device).split(EVALUATION_BATCH):
        logits = model(batch[:, :-1]).float()
        total += functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
        ).item()
    return total / (EVALUATION_WINDOWS * CONTEXT) / math.log(2)


if __name__ == "__main__":
    for part, data in zip(("train", "validation"), read_data(), strict=True):
        digest = hashlib.sha256(bytes(data.tolist())).hexdigest()
        print(f"{part}: {len(data):,} bytes, sha256 {digest}")
