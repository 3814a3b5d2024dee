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

_FIRST_ROW = -2
"""Rows −2, −3, … key the path; rows of tables count from 0 and the initial noise has −1."""
_LARGEST_DEPTH = 40
_KEPT = 4


class _Cell(NamedTuple):
    """A dyadic interval: index at its depth, W and ∫W at its left end, its increment and its Lévy area H."""

    index: int
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
        An empty or infinite interval, or a depth outside 1..40.
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
        increment, area = self._normals(_FIRST_ROW, 0)
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
        u = place * 2.0**depth - cell.index
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
        """(depth, cell) around a place in [0, 1]: the smallest cell, or one that begins or ends there."""
        cells = self._cells
        for depth in range(self.depth + 1):
            if depth == len(cells) or cells[depth].index != _index(place, depth):
                cells[depth:] = [self._half(depth - 1, cells[depth - 1], _index(place, depth) & 1)]
            if place * 2.0**depth - cells[depth].index in (0.0, 1.0):
                return depth, cells[depth]
        return self.depth, cells[self.depth]

    def _half(self, depth: int, cell: _Cell, right: int) -> _Cell:
        """The left or right half of a cell at `depth`."""
        length = (self.end - self.start) / 2.0**depth
        first, second = self._normals(_FIRST_ROW - 1 - depth, cell.index)
        bend, twist = (length / 16) ** 0.5 * first, (length / 12) ** 0.5 * second
        left = 0.5 * cell.increment + 1.5 * cell.area + bend
        left_area = 0.25 * cell.area - 0.5 * bend + 0.5 * twist
        if not right:
            return _Cell(2 * cell.index, cell.value, cell.integral, left, left_area)
        integral = cell.integral + 0.5 * length * (cell.value + 0.5 * left + left_area)
        area = 0.25 * cell.area - 0.5 * bend - 0.5 * twist
        return _Cell(2 * cell.index + 1, cell.value + left, integral, cell.increment - left, area)

    def _normals(self, row: int, index: int) -> tuple[Tensor, Tensor]:
        shape, device = (*self.shape, 2), self.samples.device
        pair = keyed_normal(shape, self.seed, self.samples, row, index, dtype=self.dtype, device=device)
        return pair[..., 0], pair[..., 1]


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
