"""Runs of a table one row at a time, so that what comes after a row may still be chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from ..anchors import anchor_values, missing_anchors
from ..border import TableBorder
from ..combine import Combiner
from ..program import Linear
from ..table import Table
from .trajectories import Problem


def check_walkable(table: Table) -> None:
    """Raise ValueError unless the table is deterministic and needs no anchors."""
    if table.stochastic or missing_anchors(table):
        raise ValueError(f"calibration needs a deterministic method without anchors, which {table.method!r} is not")


class Walk:
    """Values of a run that stopped between two rows.

    All tables given to its methods share rows, calls and value numbers with `table`; only coefficients of updates may
    differ, and updates that were not done yet.

    Parameters
    ----------
    problem : Problem
        Pays for the calls.
    table : Table
        Deterministic, with no anchors but its own constants.
    x_init : Tensor (B, ...)
        States at node 0.
    chunk : int, optional
        Largest batch given to the network.

    Raises
    ------
    ValueError
        A stochastic table or one that needs anchors; a row that the problem's prediction cannot serve.
    """

    def __init__(self, problem: Problem, table: Table, x_init: Tensor, chunk: int | None = None) -> None:
        check_walkable(table)
        wide = x_init.to(torch.promote_types(x_init.dtype, torch.float32))
        self.values: dict[int, Tensor] = {0: wide, **anchor_values(table, wide)}
        self._combine = Combiner(x_init.device, table.basis)
        self._border = TableBorder(table, problem, x_init, problem.prediction)
        self._parts = list(problem.chunks(len(x_init), chunk))

    def value(self, expression: Linear) -> Tensor:
        """The tensor of an expression in the values so far."""
        return self._combine(tuple(expression.terms.items()), self.values)

    def query(self, table: Table, k: int, query: Tensor | None = None) -> Tensor:
        """The output of row k at its query, or at the given states; costs B calls (none for an analytic step)."""
        row = table.rows[k]
        assert row.query is not None
        if row.estimate is not None:
            return self._combine(row.estimate, self.values)
        query = self.values[row.query] if query is None else query
        outputs = []
        with torch.no_grad():
            for rows, part in self._parts:
                self._border.model = part
                outputs.append(self._border(k, row, query[rows], part.model_kwargs))
        return torch.cat(outputs)

    def updated(self, table: Table, k: int, values: dict[int, Tensor]) -> dict[int, Tensor]:
        """`values` and those computed in row k from them."""
        values = dict(values)
        for target, terms in table.rows[k].updates:
            values[target] = self._combine(terms, values)
        return values

    def go(self, table: Table, k: int, output: Tensor | None = None) -> None:
        """Do row k; `output` is its output, where it is known already."""
        number = table.rows[k].output
        assert number is not None
        self.values[number] = self.query(table, k) if output is None else output
        self.values = self.updated(table, k, self.values)
