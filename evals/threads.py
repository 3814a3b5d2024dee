"""How many threads a small network is worth on this machine, found by trying."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIALS = 3
_PASSES = 6


def _seconds(layer: torch.nn.Module, x: torch.Tensor, threads: int) -> float:
    """Time of a few forward and backward passes."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for _ in range(_PASSES):
        layer(x).square().mean().backward()
    return time.perf_counter() - start


@contextmanager
def quickest_threads() -> Iterator[int]:
    """Use one thread or all of them, whichever runs small convolutions faster right now; undone at the end.

    On small images a pool often costs more than it gives, and on a busy machine it can cost ten times more.
    """
    before = torch.get_num_threads()
    layer = torch.nn.Sequential(
        torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(64, 32, 3, padding=1)
    )
    x = torch.zeros(64, 32, 8, 8)
    try:
        candidates = sorted({1, before})
        best = {threads: float("inf") for threads in candidates}
        for trial in range(_TRIALS + 1):  # the first one starts the pools
            for threads in candidates:
                seconds = _seconds(layer, x, threads)
                best[threads] = min(best[threads], seconds) if trial else best[threads]
        chosen = min(candidates, key=lambda threads: best[threads])
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(before)
