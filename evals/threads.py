"""How many threads a small network is worth on this machine, found by trying."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_TRIALS = 4
_GAIN = 1.25  # what all threads must gain over one: on a machine that becomes busy they lose far more


def _seconds(work: Callable[[], Any], threads: int) -> float:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def quickest_threads(work: Callable[[], Any]) -> Iterator[int]:
    """Use one thread or all of them, whichever does ``work`` faster right now; undone at the end.

    On small images a pool of threads often costs more than it gives, and on a busy machine ten times more.

    Parameters
    ----------
    work : callable
        A sample of the work, some tenths of a second long; called about ten times.
    """
    before = torch.get_num_threads()
    try:
        candidates = sorted({1, before})
        best = dict.fromkeys(candidates, float("inf"))
        for trial in range(_TRIALS):
            for threads in candidates:
                seconds = _seconds(work, threads)
                if trial:  # the first round starts the pools
                    best[threads] = min(best[threads], seconds)
        chosen = before if best[1] > _GAIN * best[before] else 1
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(before)
