"""Deterministic tables with one call per level in their widest linear form, which is what learning changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nodes import Level
from ..numerics import Array
from ..table import Coefficient, Row, Table, Terms, Update

FRAME = "none: fitted to trajectories"
Groups = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Triangular:
    """x_i = w_i0·x_0 + Σ_a w_ia·anchor_a + Σ_{j<i} w_ij·D_j for the state of every call i, and for the result.

    D_j is the data prediction of call j. Every deterministic table without inner memory is of this form, whatever its
    outputs are stored as: earlier states are combinations of x_0 and earlier outputs themselves.

    Attributes
    ----------
    levels : tuple of N Level
        Of the calls.
    weights : tuple of N + 1 arrays (1 + anchors + i, G)
        Row i is the state of call i, the last one the result; one column for each group of coordinates.
    table : Table
        The table it was made from, which gives start, end, anchors and nodes.
    groups : int array of the shape of one sample, optional
        Group of each coordinate; None for G = 1.
    basis : str, optional
        Name of the basis whose coordinates are grouped; None is the state's own.
    """

    levels: tuple[Level, ...]
    weights: tuple[Array, ...]
    table: Table
    groups: Groups | None = None
    basis: str | None = None

    @property
    def calls(self) -> int:
        """Number of network calls N."""
        return len(self.levels)

    @property
    def fixed(self) -> int:
        """Columns that exist before the first call: the initial state and the anchors."""
        return 1 + len(self.table.anchors)

    @property
    def parameters(self) -> int:
        """Number of weights of the rows that a fit may change."""
        return sum(self.weights[i].size for i in self.free_rows)

    @property
    def free_rows(self) -> list[int]:
        """Rows that a fit may change: all but a first call at the initial state itself."""
        first = self.weights[0]
        at_start = bool((first[0] == 1.0).all() and (first[1:] == 0.0).all())
        return list(range(1 if at_start else 0, self.calls + 1))

    def grouped(self, groups: Groups | None, basis: str | None = None) -> Triangular:
        """The same with its weights repeated for every group of coordinates in a basis."""
        count = 1 if groups is None else int(groups.max()) + 1
        weights = tuple(np.repeat(w[:, :1], count, axis=1) for w in self.weights)
        return replace(self, weights=weights, groups=groups, basis=None if groups is None else basis)

    def to_table(self, options: dict[str, Any] | None = None) -> Table:
        """The equivalent table; its coefficients are arrays, in the groups' basis, where there are groups."""
        count = self.fixed + 3 * (self.calls + 1)
        columns, free = list(range(self.fixed)), iter(range(self.fixed, count))
        rows: list[Row] = []
        state = 0
        for i, w in enumerate(self.weights):
            if i in self.free_rows:
                terms: Terms = tuple((v, self._coefficient(c)) for v, c in zip(columns, w, strict=True))
                state = next(free)
                update = Update(state, terms)
                if rows:
                    rows[-1] = replace(rows[-1], updates=(update,))
                else:
                    rows.append(Row(self.table.start, "data", None, None, None, (), (update,)))
            if i < self.calls:
                columns.append(next(free))
                rows.append(Row(self.levels[i], "data", state, columns[-1], None, (), ()))
        recorded = self.table.options | (options or {})
        return replace(self.table, rows=tuple(rows), result=state, frame=FRAME, options=recorded, basis=self.basis)

    def _coefficient(self, weights: Array) -> Coefficient:
        return float(weights[0]) if self.groups is None else np.asarray(weights[self.groups], dtype=np.float64)


def triangular(table: Table) -> Triangular:
    """The form of a table.

    Raises
    ------
    ValueError
        A stochastic table, one with coefficients per coordinate, or levels of calls that do not increase in λ.
    """
    arrays = [c for row in table.rows for _, c in row.estimate or () if isinstance(c, np.ndarray)]
    if table.stochastic or table.has_arrays or arrays:
        kind = "draws noise" if table.stochastic else "has coefficients per coordinate"
        raise ValueError(f"learned rows need a deterministic table with scalar coefficients; {table.method!r} {kind}")
    levels = [row.level for row in table.rows if row.calls_network]
    lams = [level.lam for level in levels]
    if not levels or any(b <= a for a, b in pairwise(lams)):
        raise ValueError(f"learned rows need calls at increasing levels; those of {table.method!r} are at λ = {lams}")
    width = 1 + len(table.anchors) + len(levels)
    values = {i: np.eye(1, width, i)[0] for i in range(1 + len(table.anchors))}
    weights: list[Array] = []
    for row in table.rows:
        if row.query is not None and row.output is not None:
            query = values[row.query]
            if row.estimate is None:
                data = np.eye(1, width, 1 + len(table.anchors) + len(weights))[0]
                weights.append(query[: 1 + len(table.anchors) + len(weights), None])
                values[row.output] = _stored(data, query, row)
            else:
                values[row.output] = _sum(row.estimate, values, width)
        for target, terms in row.updates:
            values[target] = _sum(terms, values, width)
    return Triangular(tuple(levels), (*weights, values[table.result][:, None]), table)


def _sum(terms: Terms, values: dict[int, Array], width: int) -> Array:
    return sum((float(c) * values[v] for v, c in terms), np.zeros(width))


def _stored(data: Array, query: Array, row: Row) -> Array:
    """A call's output in the form its row stores, in the columns."""
    level = row.level
    if row.form == "data":
        return data
    noise = (query - level.signal * data) / level.noise
    if row.form == "noise":
        return noise
    if level.signal_rate is None or level.noise_rate is None:
        raise ValueError(f"the row at time {level.time:g} stores velocity, but the path's rates are unknown")
    return np.asarray(level.signal_rate * data + level.noise_rate * noise)


def combine(weights: Tensor, columns: Sequence[Tensor], groups: Tensor | None) -> Tensor:
    """Σ_j weights_j·columns_j for weights (J, G); differentiable in both."""
    total: Tensor | None = None
    for w, column in zip(weights, columns, strict=True):
        term = column * (w[0] if groups is None else w[groups])
        total = term if total is None else total + term
    assert total is not None
    return total


def execute(
    rows: Triangular,
    predict: Callable[[Level, Tensor], Tensor],
    columns: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    first: int = 0,
) -> tuple[Tensor, list[Tensor]]:
    """Run from row `first`; differentiable in the weights.

    Parameters
    ----------
    rows : Triangular
    predict : callable (level, states) -> data prediction
    columns : list of Tensor (B, ...)
        The initial state, the anchors, and the outputs of the calls before row `first`.
    weights : tensors like `rows.weights`, optional
        In their place, to differentiate in.

    Returns
    -------
    result (B, ...), and all columns
    """
    columns = list(columns)
    like = columns[0]
    groups = None if rows.groups is None else torch.as_tensor(rows.groups, device=like.device)
    given = weights if weights is not None else [torch.as_tensor(w) for w in rows.weights]
    state = like
    for i in range(first, rows.calls + 1):
        state = combine(given[i].to(like), columns, groups)
        if i < rows.calls:
            columns.append(predict(rows.levels[i], state))
    return state, columns
