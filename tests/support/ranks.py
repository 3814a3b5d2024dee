"""Processes made of threads: what a population over several processes must not depend on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ThreadRanks:
    """One of `count` threads that exchange rows like processes do."""

    def __init__(self, rank: int, count: int, shared: dict[int, Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.count = rank, count
        self._shared, self._barrier = shared, barrier
        self.moved = 0

    def collect(self, value: Tensor) -> Tensor:
        """Rows of all threads."""
        self.moved += value.numel()
        self._shared[self.rank] = value
        self._barrier.wait()
        everyone = torch.cat([self._shared[r] for r in range(self.count)])
        self._barrier.wait()
        return everyone


def in_threads(count: int, task: Callable[[ThreadRanks], Any]) -> list[Any]:
    """What `task` returns for each of `count` ranks that run at once."""
    shared: dict[int, Tensor] = {}
    barrier = threading.Barrier(count, timeout=60)
    results: list[Any] = [None] * count

    def work(rank: int) -> None:
        try:
            results[rank] = task(ThreadRanks(rank, count, shared, barrier))
        except BaseException as error:
            barrier.abort()
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
