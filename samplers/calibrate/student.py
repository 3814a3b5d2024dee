"""A table as a differentiable function of its levels, of the times the network is told, and of the weights of its rows.

Coefficients come from `build_table` on the host, where no gradient passes. What depends on the levels is a few dozen
numbers, so that their derivatives are taken there by central differences of the table itself (two builds for each
level, no network call); from these numbers on, automatic differentiation goes through the network. This works for every
deterministic method of the registry, those with inner stages included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..border import Border, row_conversions
from ..nodes import Level, Nodes, times_at
from ..numerics import Array
from ..registry import build_table
from ..sampling import plan
from ..table import Table, Terms
from .row_fits import nodes_of
from .trajectories import Problem
from .triangular import Triangular, combine

APART = 0.05
"""Least distance of learned levels in λ."""
_STEP = 1e-4  # in λ, of the differences by which coefficients are differentiated
_EDGE = 1e-3  # share of the range of λ that is left at least beyond the last level


class Numbers(NamedTuple):
    """One run in numbers, arrays on the host or tensors.

    Attributes
    ----------
    weights : N + 1 vectors (fixed + i,)
        Row i gives the state of call i, the last one the result, from x_0, anchors and outputs so far.
    on_query, on_output : (N,)
        Data prediction = on_query·query + on_output·(output of the network).
    lams : (N,)
        λ of the calls; 0 stands for that of a call at the path's start, which may be infinite.
    times : (N,)
        What the network is told.
    """

    weights: Sequence[Any]
    on_query: Any
    on_output: Any
    lams: Any
    times: Any


def expand(table: Table) -> list[Array]:
    """Weights (fixed + i,) of the state of call i, and of the result, on x_0, anchors and data predictions so far.

    Raises
    ------
    ValueError
        A stochastic table, or one with coefficients per coordinate.
    """
    if table.stochastic or table.has_arrays:
        kind = "draws noise" if table.stochastic else "has coefficients per coordinate"
        raise ValueError(f"gradients need a deterministic table with scalar coefficients; {table.method!r} {kind}")
    fixed = 1 + len(table.anchors)
    unit = np.eye(fixed + table.evaluations)
    values = dict(enumerate(unit[:fixed]))
    states: list[Array] = []

    def combined(terms: Terms) -> Array:
        return sum((float(c) * values[v] for v, c in terms), np.zeros(len(unit)))

    for row, (on_query, on_output) in zip(table.rows, row_conversions(table, "data"), strict=True):
        if row.estimate is not None and row.output is not None:
            values[row.output] = combined(row.estimate)
        elif row.query is not None and row.output is not None:
            states.append(values[row.query])
            values[row.output] = on_query * states[-1] + on_output * unit[fixed + len(states) - 1]
        for target, terms in row.updates:
            values[target] = combined(terms)
    return [state[: fixed + i] for i, state in enumerate((*states, values[table.result]))]


@dataclass(frozen=True, eq=False)
class Student:
    """A method at any levels, as numbers that tensors can follow.

    Attributes
    ----------
    problem : Problem
    method, options : the base
    start : array (K,)
        λ of the base's nodes but the clean end; the first is the path's start and never moves.
    table : Table
        The base.
    """

    problem: Problem
    method: str
    options: Mapping[str, Any]
    start: Array
    table: Table

    @classmethod
    def make(
        cls, problem: Problem, nfe: int | None, method: str, options: Mapping[str, Any], grid: str | Nodes
    ) -> Student:
        """The largest table of the method within `nfe` calls, or that on given nodes (then nfe is None).

        Raises
        ------
        ValueError
            An unknown name or option, fewer calls than a step costs, or a table that is not deterministic.
        """
        table = plan(problem.path, method, nfe=nfe, grid=grid, **options)
        expand(table)
        if unknown := set(table.anchors) - {"data_mean"}:
            raise ValueError(f"gradients need a method without anchors, but {method!r} takes {sorted(unknown)}")
        signal, noise = (np.array(table.nodes[key]) for key in ("signal", "noise"))
        with np.errstate(divide="ignore"):
            lam = np.log(signal) - np.log(noise)
        return cls(problem, method, dict(options), lam[:-1], table)

    @property
    def calls(self) -> int:
        """Network calls N of one run."""
        return self.table.evaluations

    @property
    def fixed(self) -> int:
        """Columns that exist before the first call."""
        return 1 + len(self.table.anchors)

    @cached_property
    def inner(self) -> Array:
        """Which calls may be told another time: all but one at the path's start."""
        return np.array([level.lam > self.start[0] for level in self.levels(self.table)])

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of λ in which levels move."""
        return float(max(self.start[0], self.problem.path.lambda_min)), float(self.problem.path.lambda_max)

    @staticmethod
    def levels(table: Table) -> list[Level]:
        """Levels of the calls."""
        return [row.level for row in table.rows if row.calls_network]

    def build(self, lam: Array, shifts: Array | None = None) -> Table:
        """The method at nodes λ (K,), its network told the time of λ + shift at call i (N,); the base at its own λ."""
        same = np.array_equal(lam, self.start)
        table = self.table if same else build_table(self.method, self._nodes(lam), **self.options)
        if shifts is None or not shifts.any():
            return table
        told = iter(self.times(table, shifts))
        rows = tuple(
            replace(row, level=row.level._replace(time=float(next(told)))) if row.calls_network else row
            for row in table.rows
        )
        return replace(table, rows=rows)

    def with_rows(self, table: Table, weights: Sequence[Array], record: dict[str, Any]) -> Table:
        """A table with its calls and these weights."""
        columns = tuple(np.asarray(w, dtype=np.float64)[:, None] for w in weights)
        return Triangular(tuple(self.levels(table)), columns, table).to_table(record)

    def times(self, table: Table, shifts: Array) -> Array:
        """Times (N,) of the calls of an unshifted table, moved in λ."""
        path = self.problem.path
        lams = np.array([level.lam for level in self.levels(table)])
        times = np.array([level.time for level in self.levels(table)])
        return times + times_at(path, lams + shifts) - times_at(path, lams) if shifts.any() else times

    def numbers(self, lam: Array, shifts: Array) -> Numbers:
        """The run at nodes λ (K,) and label shifts (N,)."""
        return self._numbers(self.build(lam), shifts)

    def traced(self, lam: Tensor, shifts: Tensor) -> Numbers:
        """`numbers` as float64 tensors that carry their derivatives by λ (K,) and shifts (N,)."""
        at, by = lam.detach().numpy(), shifts.detach().numpy()
        table = self.build(at)
        here = self._numbers(table, by)
        value = torch.from_numpy(_flat(here))
        if lam.requires_grad and len(at) > 1:
            slopes = [torch.from_numpy(self._slope(at, by, j)) for j in range(1, len(at))]
            value = value + torch.stack(slopes, 1) @ (lam - lam.detach())[1:]
        if shifts.requires_grad:
            above, below = (self.times(table, by + step * self.inner) for step in (_STEP, -_STEP))
            moved = torch.from_numpy((above - below) / (2 * _STEP)) * (shifts - shifts.detach())
            value = torch.cat([value[: -self.calls], value[-self.calls :] + moved])
        *weights, on_query, on_output, lams, times = value.split([*map(len, here.weights), *[self.calls] * 4])
        return Numbers(weights, on_query, on_output, lams, times)

    def spread(self, logits: Tensor) -> Tensor:
        """λ (K,) of the nodes: cumulative shares, by softmax of K logits, of the range after the start (LD3)."""
        low, high = self.bounds
        count = len(self.start) - 1
        room = high - low - APART * count
        shares = torch.softmax(logits, 0).cumsum(0)[:-1]
        lam = low + APART * torch.arange(1, count + 1) + room * shares
        return torch.cat([torch.as_tensor(self.start[:1]), lam])

    def logits(self) -> Tensor:
        """Those of the base's own levels, moved apart and off the end where they must be.

        Raises
        ------
        ValueError
            So many levels that they cannot be kept apart.
        """
        low, high = self.bounds
        count = len(self.start) - 1
        room = high - low - APART * count
        if room <= 0:
            raise ValueError(f"{count} levels do not fit into λ = {low:.3g} … {high:.3g} at a distance of {APART}")
        cumulative = (self.start[1:] - low - APART * np.arange(1, count + 1)) / room
        shares = np.maximum(np.diff(np.concatenate([[0.0], cumulative, [1.0]])), _EDGE)
        return torch.from_numpy(np.log(shares / shares.sum()))

    def most_shift(self, lam: Tensor) -> Tensor:
        """Half of the smallest distance of two levels, at most which a label may be off (LD3)."""
        return 0.5 * lam[torch.isfinite(lam)].diff().min() if len(self.start) > 2 else lam.new_tensor(0.5)

    def _nodes(self, lam: Array) -> Nodes:
        return nodes_of(self.problem, lam)

    def _numbers(self, table: Table, shifts: Array) -> Numbers:
        border = Border(self.problem, torch.zeros(1), self.problem.prediction)
        levels = self.levels(table)
        pairs = np.array([border.conversion(level, "data")[0] for level in levels])
        lams = np.array([level.lam if inner else 0.0 for level, inner in zip(levels, self.inner, strict=True)])
        return Numbers(expand(table), pairs[:, 0], pairs[:, 1], lams, self.times(table, shifts))

    def _slope(self, lam: Array, shifts: Array, j: int) -> Array:
        move = _STEP * np.eye(1, len(lam), j)[0]
        above, below = (_flat(self.numbers(lam + sign * move, shifts)) for sign in (1.0, -1.0))
        return (above - below) / (2 * _STEP)


def _flat(numbers: Numbers) -> Array:
    return np.concatenate([*numbers.weights, *numbers[1:]])


def walk(numbers: Numbers, problem: Problem, columns: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Run; differentiable in the numbers (tensors), the network and the columns.

    Parameters
    ----------
    numbers : Numbers
    problem : Problem
        Of these samples; pays for the calls.
    columns : list of Tensor (B, ...)
        The initial state and the anchors.

    Returns
    -------
    result (B, ...), the states of the calls, and all columns
    """
    columns = list(columns)
    like = columns[0]
    label = torch.float64 if like.dtype == torch.float64 else torch.float32
    states: list[Tensor] = []
    for i, weights in enumerate(numbers.weights):
        state = combine(weights.to(like)[:, None], columns, None)
        if i == len(numbers.times):
            return state, states, columns
        states.append(state)
        time = numbers.times[i].to(device=like.device, dtype=label).expand(len(state))
        out = problem(state, time, **problem.model_kwargs).to(like.dtype)
        columns.append(numbers.on_query[i].to(like) * state + numbers.on_output[i].to(like) * out)
    raise AssertionError("numbers without a last row")
