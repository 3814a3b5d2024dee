"""A Brownian path that can be asked at any time, in any order: a pure function of (seed, sample, time).

Refining a grid keeps the path, and neither the batch nor the order of the questions matters. The interval is halved a
fixed number of times; each half inherits its increment and its space-time Lévy area from the whole and from two keyed
normals of its own (Foster, Lyons and Oberhauser 2020, "An optimal polynomial approximation of Brownian motion",
Theorem 5.4), and the smallest cells carry the parabola with their increment and area. Only the cells around the time
asked for are visited, in a loop without recursion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..keyed_noise import keyed_normal
from ..run_state import NoiseSource
from ..table import Table

_ROW = -2
"""Keys the path; rows of tables count from 0 and the initial noise has −1."""
_LARGEST_DEPTH = 30
_NODE_BITS = _LARGEST_DEPTH + 1
"""A node of the tree and a sample index below 2³² share one 64-bit key."""
_KEPT = 4


class _Cell(NamedTuple):
    """A dyadic interval: its place at its depth, W and ∫W at its left end, its increment and Lévy area H."""

    place: int
    value: Tensor
    integral: Tensor
    increment: Tensor
    area: Tensor


class BrownianPath:
    """Independent Brownian motions W on [start, end] with W(start) = 0, one for each coordinate of each sample.

    Parameters
    ----------
    shape : sequence of int
        Shape of one sample.
    seed : int
    samples : (B,) int64 tensor or sequence of int
        Global sample indices.
    start, end : float
    depth : int
        Number of halvings; below (end − start)/2^depth the path is smooth.
    device : where tensors live; they are float64, on MPS float32.

    Raises
    ------
    ValueError
        An empty or infinite interval, or a depth outside 1..30.
    """

    def __init__(
        self,
        shape: Sequence[int],
        seed: int,
        samples: Tensor | Sequence[int],
        start: float = 0.0,
        end: float = 1.0,
        *,
        depth: int = 16,
        device: torch.device | str | None = None,
    ) -> None:
        if not -math.inf < start < end < math.inf:
            raise ValueError(f"start={start!r}, end={end!r} is no interval; start must be below end, both finite")
        if not 1 <= depth <= _LARGEST_DEPTH:
            raise ValueError(f"depth={depth!r} is not possible; allowed: 1..{_LARGEST_DEPTH}")
        self.shape, self.seed, self.start, self.end, self.depth = tuple(shape), seed, start, end, depth
        self.samples = torch.as_tensor(samples, dtype=torch.int64, device=device)
        self.dtype = torch.float32 if self.samples.device.type == "mps" else torch.float64
        length = end - start
        zero = torch.zeros((len(self.samples), *self.shape), dtype=self.dtype, device=self.samples.device)
        ((increment, area),) = self._normals([0])
        root = _Cell(0, zero, zero, length**0.5 * increment, (length / 12) ** 0.5 * area)
        self._cells = [root]  # the way down to the last time asked for: neighbours share most of it
        self._recent: list[tuple[float, Tensor, Tensor]] = []  # a step and its halves ask for each end twice

    def __call__(self, time: float) -> Tensor:
        """W(time), shape (B, *shape)."""
        return self.at(time)[0]

    def at(self, time: float) -> tuple[Tensor, Tensor]:
        """(W(time), ∫W from start to time).

        Raises
        ------
        ValueError
            The time lies outside the interval (by more than rounding).
        """
        for known, value, integral in self._recent:
            if known == time:
                return value, integral
        place = (time - self.start) / (self.end - self.start)
        if not -1e-9 <= place <= 1.0 + 1e-9:
            raise ValueError(f"time={time!r} lies outside the path's interval [{self.start:g}, {self.end:g}]")
        place = min(max(place, 0.0), 1.0)
        depth, cell = self._descend(place)
        width = (self.end - self.start) / 2.0**depth
        u = place * 2.0**depth - cell.place
        rise = u * cell.increment + 6.0 * u * (1.0 - u) * cell.area
        under = 0.5 * u * u * cell.increment + (3.0 - 2.0 * u) * u * u * cell.area
        answer = (time, cell.value + rise, cell.integral + width * (u * cell.value + under))
        self._recent = [*self._recent[1 - _KEPT :], answer]
        return answer[1:]

    def increment(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """(W(high) − W(low), ∫ (W − W(low)) from low to high)."""
        first, last = self.at(low), self.at(high)
        return last[0] - first[0], last[1] - first[1] - (high - low) * first[0]

    def _descend(self, place: float) -> tuple[int, _Cell]:
        """(depth, cell) around a place in [0, 1]: the smallest cell, or the largest that begins or ends there."""
        steps = range(self.depth + 1)
        stop = next((d for d in steps if place == 1.0 or place * 2.0**d == _index(place, d)), self.depth)
        shared = 0
        while shared < min(stop, len(self._cells) - 1) and self._cells[shared + 1].place == _index(place, shared + 1):
            shared += 1
        if shared < stop:
            del self._cells[shared + 1 :]
            normals = self._normals([2**d + _index(place, d) for d in range(shared, stop)])
            for depth, (first, second) in enumerate(normals, start=shared):
                self._cells.append(self._half(depth, first, second, _index(place, depth + 1) & 1))
        return stop, self._cells[stop]

    def _half(self, depth: int, first: Tensor, second: Tensor, right: int) -> _Cell:
        """The left or right half of the cell at `depth`."""
        cell, length = self._cells[depth], (self.end - self.start) / 2.0**depth
        bend, twist = (length / 16) ** 0.5 * first, (length / 12) ** 0.5 * second
        left = 0.5 * cell.increment + 1.5 * cell.area + bend
        left_area = 0.25 * cell.area - 0.5 * bend + 0.5 * twist
        if not right:
            return _Cell(2 * cell.place, cell.value, cell.integral, left, left_area)
        integral = cell.integral + 0.5 * length * (cell.value + 0.5 * left + left_area)
        area = 0.25 * cell.area - 0.5 * bend - 0.5 * twist
        return _Cell(2 * cell.place + 1, cell.value + left, integral, cell.increment - left, area)

    def _normals(self, nodes: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Two standard normals (B, *shape) for each node of the tree, numbered 2^depth + index; 0 is the whole."""
        keys = torch.cat([self.samples * 2**_NODE_BITS + node for node in nodes])
        shape = (math.prod(self.shape), 2)
        drawn = keyed_normal(shape, self.seed, keys, _ROW, dtype=self.dtype, device=self.samples.device)
        parts = drawn.reshape(len(nodes), len(self.samples), *self.shape, 2).unbind()
        return [(part[..., 0], part[..., 1]) for part in parts]


def _index(place: float, depth: int) -> int:
    return min(int(place * 2.0**depth), 2**depth - 1)


def brownian_noise(
    table: Table, shape: Sequence[int], *, seed: int = 0, samples: Sequence[int] | Tensor, depth: int = 16
) -> NoiseSource:
    """Noise for `run(table, ..., noise=...)` from one Brownian path in λ, so that finer grids see the same path.

    The draw of a row is the normalised increment of the path between the row's level and the next row's.

    Parameters
    ----------
    table : Table
        At most one draw in a row, between finite levels that rise in λ.
    shape, seed, samples, depth : as in `BrownianPath`

    Raises
    ------
    ValueError
        A row draws several noises, or between levels that do not rise (churn, restart) or are infinite.
    """
    ends = [row.level.lam for row in table.rows[1:]] + [table.end.lam]
    spans = {k: (row.level.lam, ends[k]) for k, row in enumerate(table.rows) if any(z >= 0 for z in row.noises)}
    for k, (low, high) in spans.items():
        if len(table.rows[k].noises) > 1 or not -math.inf < low < high < math.inf:
            raise ValueError(
                f"row {k} of {table.method!r} draws {len(table.rows[k].noises)} noises between λ = {low:g} and "
                f"{high:g}; a Brownian path serves one draw between finite, rising levels"
            )
    if not spans:
        raise ValueError(f"table {table.method!r} draws no noise")
    device = samples.device if isinstance(samples, Tensor) else None
    path = BrownianPath(
        shape,
        seed,
        samples,
        min(low for low, _ in spans.values()),
        max(high for _, high in spans.values()),
        depth=depth,
        device=device,
    )

    def draw(row: int, slot: int, like: Tensor) -> Tensor:
        low, high = spans[row]
        return ((path(high) - path(low)) / (high - low) ** 0.5).to(like)

    return draw
