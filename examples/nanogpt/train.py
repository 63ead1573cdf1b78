"""A small byte-level GPT. This is the one file that the loop edits; everything in it is fair game.

Run it: ``python3 train.py`` trains for TRAIN_SECONDS, then prints the summary. ``--steps N`` trains
for N steps instead: at equal settings on one machine this repeats bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from pathlib import Path

from prepare import CONTEXT, VOCABULARY, evaluate_bpb, read_data

import torch  # after prepare, which silences a warning of torch's import
from torch import nn
from torch.nn import functional

STARTED = time.perf_counter()

# --- the budget ---
TRAIN_SECONDS = 20
SEED = 42

# --- the model ---
DEPTH = 3
WIDTH = 96
HEADS = 3

# --- the optimiser ---
BATCH_SIZE = 16
MATRIX_LR = 0.003
EMBEDDING_LR = 0.01
SCALAR_LR = 0.5
WEIGHT_DECAY = 0.05
WARMUP = 0.05
FINAL_LR = 0.05


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))


class Block(nn.Module):
    """Attention and a feed-forward net, each added to the stream with a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        self.attention = Attention()
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.scales = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scales[0] * self.attention(self.norms[0](x))
        return x + self.scales[1] * self.down(functional.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    """Bytes in, logits over the next byte out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(VOCABULARY, WIDTH)
        self.pairs = nn.Embedding(VOCABULARY, VOCABULARY)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            if name.endswith(("out.weight", "down.weight", "pairs.weight")):
                nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = self.pairs(x)  # what the last byte alone says about the next one
        x = self.bytes(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            x = block(x)
        return pairs + self.head(self.norm(x))


def make_optimisers(model: GPT) -> list[torch.optim.Optimizer]:
    """Adam for what multiplies or looks up; plain momentum for gains and residual scales."""
    tables = (model.bytes, model.positions, model.pairs)
    embeddings = [table.weight for table in tables]
    matrices = [*model.blocks.parameters(), *model.head.parameters()]
    matrices = [p for p in matrices if p.ndim > 1]
    scalars = [p for p in model.parameters() if p.ndim == 1]
    adam = torch.optim.AdamW(
        [{"params": matrices, "lr": MATRIX_LR}, {"params": embeddings, "lr": EMBEDDING_LR}],
        betas=(0.9, 0.95),
        weight_decay=WEIGHT_DECAY,
    )
    gains = torch.optim.SGD(scalars, lr=SCALAR_LR, momentum=0.9)
    for group in (*adam.param_groups, *gains.param_groups):
        group["peak"] = group["lr"]
    return [adam, gains]


def rate(progress: float) -> float:
    """The learning rate's share of its peak when this share of the budget is spent."""
    if progress < WARMUP:
        return max(progress, 0.001) / WARMUP
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product here: what MFU is a share of."""
    size, repeats = 1024, 4
    a = torch.ones(size, size, device=device)
    begun = time.perf_counter()
    for _ in range(repeats):
        a = a @ a / size
    a[0, 0].item()  # waits for the device
    return 2 * size**3 * repeats / (time.perf_counter() - begun)


def main() -> None:
    """Train, evaluate, print the summary."""
    parser = argparse.ArgumentParser(description="Train the byte-level GPT.")
    parser.add_argument("--steps", type=int, help="train for this many steps instead of a time")
    steps = parser.parse_args().steps

    torch.manual_seed(SEED)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, validation = read_data()
    model = GPT().to(device)
    optimisers = make_optimisers(model)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(train):,} training bytes, {parameters:,} parameters, on {device}", flush=True)

    began = reported = time.perf_counter()
    step, progress = 0, 0.0
    window = torch.arange(CONTEXT + 1)
    while progress < 1:
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rate(progress)
        starts = torch.randint(len(train) - CONTEXT, (BATCH_SIZE,))
        batch = train[starts[:, None] + window].long().to(device)
        logits = model(batch[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        now = time.perf_counter()
        progress = step / steps if steps else (now - began) / TRAIN_SECONDS
        if step == 1 or now - reported > 2 or progress >= 1:
            reported = now
            bits = loss.item() / math.log(2)
            print(f"step {step:05d} ({min(progress, 1):.0%}) train bpb {bits:.4f}", flush=True)
    trained = time.perf_counter() - began

    val_bpb = evaluate_bpb(model, validation, device)
    vram = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    active = parameters - VOCABULARY * (VOCABULARY + WIDTH) - CONTEXT * WIDTH  # no table look-ups
    mfu = 100 * 6 * active * step * BATCH_SIZE * CONTEXT / trained / matmul_rate(device)
    print(f"train_py_sha256: {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}")
    print("---")
    print(f"val_bpb:          {val_bpb:.6f}")
    print(f"training_seconds: {trained:.1f}")
    print(f"total_seconds:    {time.perf_counter() - STARTED:.1f}")
    print(f"peak_vram_mb:     {vram:.1f}")
    print(f"mfu_percent:      {mfu:.2f}")
    print(f"total_tokens_M:   {step * BATCH_SIZE * CONTEXT / 1e6:.1f}")
    print(f"num_steps:        {step}")
    print(f"num_params_M:     {parameters / 1e6:.1f}")
    print(f"depth:            {DEPTH}")


if __name__ == "__main__":
    main()
