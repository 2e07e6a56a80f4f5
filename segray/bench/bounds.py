"""What a GPU could do at most with a training step: by its arithmetic, and by its memory.

Peaks are measured on the spot, not read from a data sheet. FLOPs are those of matrix products and
convolutions (torch.utils.flop_counter; a multiplication and an addition are two). Bytes are
estimated: every operation reads each of its inputs once and writes each of its outputs, or what it
changes in place, once, in full.
Eager kernels do about that; a large cache, fusion and torch.compile move less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from segray.sweep.estimate import Bounds

SIDE = 8192  # of the matrices of the large product
COPIED = 2**29  # bytes of the large copy
TURNS = 10


def bounds(
    step: Callable[[], object],
    images: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    side: int = SIDE,
    copied: int = COPIED,
) -> Bounds:
    """The bounds of `step`, a training step of so many images whose products are in `dtype`."""
    step()  # the first makes the optimizer's moments, which no later one does
    flops, moved = count_work(step)
    a = torch.rand(side, side, dtype=dtype, device=device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32, which convolutions take by default
    try:
        product_s = _seconds(lambda: a @ a, device)
    finally:
        torch.set_float32_matmul_precision(before)
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _seconds(lambda: target.copy_(source), device)
    return Bounds(
        flops_per_image=flops / images,
        bytes_per_image=moved / images,
        flops_per_s=2 * side**3 / product_s,
        bytes_per_s=2 * copied / copy_s,  # read and written
    )


def count_work(step: Callable[[], object]) -> tuple[int, int]:
    """FLOPs of `step`, and the bytes that its operations read and write."""
    traffic = _Traffic()
    with FlopCounterMode(display=False) as flops, traffic:
        step()
    return flops.get_total_flops(), traffic.bytes


def wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of what every operation reads and writes; a view moves none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__:
            self.bytes += _bytes((args, kwargs, out))
            if not func._schema.returns:  # what it writes is among its arguments
                given = zip(func._schema.arguments, args, strict=False)
                self.bytes += _bytes([value for argument, value in given if argument.is_write])
        return out


def _bytes(tree: object) -> int:
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of a few turns, after one that warms up."""
    taken = []
    for _ in range(TURNS + 1):
        wait_for(device)
        started = time.perf_counter()
        run()
        wait_for(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])
