"""The normals of `keyed_noise` on the host, in pieces that stay in its cache.

NumPy's unsigned integers are several times faster than torch's signed ones, and torch's transcendental functions than
NumPy's. All intermediate arrays are kept from draw to draw: fresh memory costs as much as the arithmetic.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))
"""Constants of SplitMix64: its step; shifts and factors of its finaliser."""

_PIECE = 1 << 14  # pairs
_SHAPES = 8  # of draws, whose pieces a thread keeps
_ROUNDS = tuple((np.uint64(by), None if factor is None else np.uint64(factor)) for by, factor in MIX)


class _Held(threading.local):
    def __init__(self) -> None:
        self.kept: dict[tuple[int, int, type[np.floating[Any]]], list[_Piece]] = {}


_held = _Held()


def host_keys(seeds: Sequence[int], samples: Tensor, draws: Tensor) -> Tensor:
    """`keyed_noise.run_keys` on the host; seeds are signed 64-bit integers."""
    gamma, one = np.uint64(GAMMA), np.uint64(1)
    seed = np.array(seeds, np.int64).view(np.uint64)
    row, slot = draws.numpy().view(np.uint64).T
    of_rows = _mixed(_mixed(seed) + ((row + one + one) * gamma)[:, None])
    shared = _mixed(of_rows ^ _mixed(slot + one)[:, None])
    keys = torch.empty((len(draws), len(samples)), dtype=torch.int64, device="cpu")
    keys.numpy().view(np.uint64)[...] = _mixed(_mixed(samples.numpy().view(np.uint64) * gamma) ^ shared)
    return keys


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _mix(value.copy(), np.empty_like(value))


def _mix(value: NDArray[np.uint64], spare: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser in the memory of `value`, and of `spare`."""
    for by, factor in _ROUNDS:
        np.bitwise_xor(value, np.right_shift(value, by, spare), value)
        if factor is not None:
            np.multiply(value, factor, value)
    return value


def box_muller(keys: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Normals (B, *shape) of every key: half of them cosines, then as many sines, less one where the number is odd."""
    batch, count = keys.shape[0], math.prod(shape)
    half = (count + 1) // 2
    drawn = torch.empty((batch, *shape) if count == 2 * half else (batch, 2 * half), dtype=dtype, device="cpu")
    streams, out = keys.numpy().view(np.uint64)[:, None], drawn.numpy().reshape(batch, 2, half)
    for piece in _pieces(batch, half, out.dtype.type):
        piece.scratch.fill(streams[piece.rows], piece.counters, out[piece.rows, :, piece.columns])
    return drawn if count == 2 * half else drawn[:, :count].reshape(batch, *shape)


class _Scratch:
    """Intermediate arrays for b streams of n pairs."""

    def __init__(self, b: int, n: int, kind: type[np.floating[Any]]) -> None:
        self._bits, self._spare = np.empty((2, b, n), np.uint64)
        halves = self._bits.view(np.uint32).reshape(b, n, 2)
        self._low, self._high = (halves[..., k] for k in ((0, 1) if sys.byteorder == "little" else (1, 0)))
        self._radius, self._angle, self._cosine = floats = np.empty((3, b, n), kind)
        with torch.inference_mode(False):  # written in and out of inference mode
            self._logarithm, self._turned, self._turned_cosine = (torch.from_numpy(part) for part in floats)
        self._unit, self._middle, self._minus_two = kind(2.0**-32), kind(2.0**-33), kind(-2.0)
        self._turn, self._turn_middle = kind(2.0 * math.pi * 2.0**-32), kind(2.0 * math.pi * 2.0**-33)

    def fill(self, streams: NDArray[np.uint64], counters: NDArray[np.uint64], out: NDArray[Any]) -> None:
        """Pairs of normals of streams (b, 1) at counters (n,) into out (b, 2, n)."""
        radius, angle = self._radius, self._angle
        _mix(np.add(streams, counters, self._bits), self._spare)
        radius[...] = self._high
        np.multiply(radius, self._unit, radius)
        np.add(radius, self._middle, radius)  # (n + 1/2)·2⁻³², never 0
        self._logarithm.log_()
        np.sqrt(np.multiply(radius, self._minus_two, radius), radius)
        angle[...] = self._low
        np.add(np.multiply(angle, self._turn, angle), self._turn_middle, angle)
        torch.cos(self._turned, out=self._turned_cosine)
        self._turned.sin_()
        np.multiply(radius, self._cosine, out[:, 0])
        np.multiply(radius, angle, out[:, 1])


class _Piece(NamedTuple):
    """Some streams at some counters, and where their arrays are made."""

    rows: slice
    columns: slice
    counters: NDArray[np.uint64]
    scratch: _Scratch


def _pieces(batch: int, half: int, kind: type[np.floating[Any]]) -> list[_Piece]:
    """The pieces of a draw, kept by this thread for shapes that come again and again."""
    kept = _held.kept
    found = kept.get((batch, half, kind))
    if found is None:
        if len(kept) >= _SHAPES:
            kept.clear()
        found = kept[batch, half, kind] = list(_cut(batch, half, kind))
    return found


def _cut(batch: int, half: int, kind: type[np.floating[Any]]) -> Iterator[_Piece]:
    rows, scratches = max(1, _PIECE // max(half, 1)), dict[tuple[int, int], _Scratch]()
    for start in range(0, half, _PIECE):
        stop = min(start + _PIECE, half)
        for row in range(0, batch, rows):
            size = min(rows, batch - row), stop - start
            if size not in scratches:
                scratches[size] = _Scratch(*size, kind)
            yield _Piece(slice(row, row + rows), slice(start, stop), _counters(start, stop), scratches[size])


@lru_cache(maxsize=64)
def _counters(start: int, stop: int) -> NDArray[np.uint64]:
    return np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(GAMMA)
