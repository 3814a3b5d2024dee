"""Heavy-ball momentum as a transform of any table whose steps are one state plus network outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from .numerics import Array
from .table import Row, Table, Terms, Update


@dataclass(frozen=True)
class _Step:
    """A state computed from the state before it: row, position in the row, and how the outputs enter."""

    row: int
    place: int
    outputs: Terms
    others: Terms
    form: str

    @property
    def total(self) -> float:
        """Sum of the outputs' weights, the step's scalar length."""
        return float(sum(float(c) for _, c in self.outputs))


def heavy_ball(
    table: Table, beta: float, *, plain: Collection[int] = (), scales: Array | None = None, first_order: bool = True
) -> Table:
    """Replace the direction d of every step by v ← (1 − β)·v + β·d (Wizadwongsa et al. 2024, section 4.1).

    The direction is the mean of the outputs that a step moves along, weighted so that a constant output is its own
    direction; v starts as the first one. Steps that return the data prediction, at noise 0 or from pure noise, keep
    theirs. Any β < 1 lowers the order to 1 and enlarges the stability region.

    Parameters
    ----------
    table : Table
        Every state is one earlier state plus outputs, noise and anchors.
    beta : float in (0, 1]
        1 changes nothing.
    plain : collection of int
        Steps (0 = first, −1 = last) without momentum that leave v as it is.
    scales : array (N,), optional
        Factor that directions have inside v, for methods that carry it in other units.
    first_order : bool
        False leaves steps along a single output as they are.

    Raises
    ------
    ValueError
        beta out of range, or a table of another shape (one that already has momentum, for instance).
    """
    if not 0 < beta <= 1:
        raise ValueError(f"heavy_ball={beta!r} is not possible; beta must be above 0 and at most 1")
    if beta == 1.0:
        return table
    steps = _chain(table)
    forms = Counter(step.form for step in steps if step)
    form = forms.most_common(1)[0][0] if forms else ""
    skipped = {p % len(steps) for p in plain}
    if table.end.noise == 0.0:
        skipped.add(len(steps) - 1)
    fresh = 1 + max(_numbers(table))
    velocity: int | None = None
    updates = [list(row.updates) for row in table.rows]
    added = [0] * len(table.rows)
    for i, step in enumerate(steps):
        if i in skipped or step is None or step.form != form or (len(step.outputs) == 1 and not first_order):
            continue
        scale = 1.0 if scales is None else float(scales[i])
        share = 1.0 if velocity is None else beta
        direction = tuple((v, share * scale / step.total * c) for v, c in step.outputs)
        old = () if velocity is None else ((velocity, 1.0 - beta),)
        target = updates[step.row][step.place + added[step.row]].target
        moved = Update(target, (*step.others, (fresh, step.total / scale)))
        where = step.place + added[step.row]
        updates[step.row][where : where + 1] = [Update(fresh, (*old, *direction)), moved]
        added[step.row] += 1
        velocity, fresh = fresh, fresh + 1
    rows = tuple(replace(row, updates=tuple(u)) for row, u in zip(table.rows, updates, strict=True))
    return replace(table, rows=rows)


def _chain(table: Table) -> list[_Step | None]:
    """The steps that lead from the initial state to the result, first one first; None returns an output as it is."""
    places = {u.target: (k, j) for k, row in enumerate(table.rows) for j, u in enumerate(row.updates)}
    forms = {row.output: row.form for row in table.rows if row.output is not None}
    queries = {row.output: row.query for row in table.rows}
    steps: list[_Step | None] = []
    state: int | None = table.result
    while state != 0:
        if state in forms:
            steps.append(None)
            state = queries[state]
            continue
        if state not in places:
            raise _refusal(table)
        row, place = places[state]
        terms = table.rows[row].updates[place].terms
        before = [v for v, _ in terms if v == 0 or v in places]
        outputs = tuple((v, c) for v, c in terms if v in forms)
        if len(before) != 1 or not outputs or any(isinstance(c, np.ndarray) for _, c in terms):
            raise _refusal(table)
        kinds = {forms[v] for v, _ in outputs}
        others = tuple(t for t in terms if t not in outputs)
        steps.append(_Step(row, place, outputs, others, kinds.pop() if len(kinds) == 1 else "mixed"))
        state = before[0]
    return steps[::-1]


def _refusal(table: Table) -> ValueError:
    return ValueError(
        f"heavy-ball momentum needs steps from one state along network outputs; {table.method!r} has others"
    )


def _numbers(table: Table) -> list[int]:
    rows: tuple[Row, ...] = table.rows
    used = [v for row in rows for v in (*row.noises, *(u.target for u in row.updates), row.output or 0, *row.reads())]
    return [*used, len(table.anchors)]
