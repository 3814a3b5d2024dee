"""Heavy-ball momentum as a transform of any table whose steps are one state plus network outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from .frames import propagate
from .numerics import Array
from .table import Row, Table, Terms, Update


@dataclass(frozen=True)
class _Step:
    """A state made from the one before it: its row and place, what it moves along, and the other terms.

    `total` is the step's scalar length: what it moves a point mass by along outputs of its `form`.
    """

    row: int
    place: int
    moving: Terms
    others: Terms
    form: str
    total: float


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
    if not steps:
        return table
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
        if i in skipped or step is None or step.form != form or (len(step.moving) == 1 and not first_order):
            continue
        scale = 1.0 if scales is None else float(scales[i])
        share = 1.0 if velocity is None else beta
        direction = tuple((v, share * scale / step.total * c) for v, c in step.moving)
        old = () if velocity is None else ((velocity, 1.0 - beta),)
        target = updates[step.row][step.place + added[step.row]].target
        moved = Update(target, (*step.others, (fresh, step.total / scale)))
        where = step.place + added[step.row]
        updates[step.row][where : where + 1] = [Update(fresh, (*old, *direction)), moved]
        added[step.row] += 1
        velocity, fresh = fresh, fresh + 1
    rows = tuple(replace(row, updates=tuple(u)) for row, u in zip(table.rows, updates, strict=True))
    mixed = table.stochastic and form != "data" and table.law == "exact"
    return replace(table, rows=rows, law="none: momentum mixes noises of different draws" if mixed else table.law)


def _chain(table: Table) -> list[_Step | None]:
    """The steps that lead from the initial state to the result, first one first; None returns an output as it is."""
    places = {u.target: (k, j) for k, row in enumerate(table.rows) for j, u in enumerate(row.updates)}
    owner = {row.output: row for row in table.rows if row.output is not None}
    values = propagate(table)
    steps: list[_Step | None] = []
    state: int | None = table.result
    while state != 0:
        if state in owner:
            steps.append(None)
            state = owner[state].query
            continue
        if state not in places:
            raise _refusal(table)
        row, place = places[state]
        step, state = _step(table, row, place, values)
        steps.append(step)
    return steps[::-1]


def _step(table: Table, row: int, place: int, values: dict[int, Array]) -> tuple[_Step | None, int | None]:
    """(step, state before it) of an update; the step is None where nothing carries over or no output enters."""
    computed = {u.target for r in table.rows for u in r.updates}
    terms = table.rows[row].updates[place].terms
    before = [v for v, _ in terms if v in computed]
    if len(before) > 1 or any(isinstance(c, np.ndarray) for _, c in terms):
        raise _refusal(table)
    drawn = {z for r in table.rows for z in r.noises} | set(range(1, 1 + len(table.anchors)))
    previous = before[0] if before else 0
    if previous not in [v for v, _ in terms]:
        return None, table.rows[row].query
    # the initial state beside a later one is the noise of a first data step, and belongs to the direction
    moving = tuple((v, c) for v, c in terms if v != previous and v not in drawn)
    if not moving:
        return None, previous
    others = tuple(t for t in terms if t not in moving)
    form = table.rows[row].form
    axis = 1 if table.frame == "velocity" else 2 if form == "noise" else 0
    same = {r.output for r in table.rows if r.form == form}
    total = float(sum(float(c) * (1.0 if v in same else values[v][axis]) for v, c in moving))
    if total == 0.0:  # a table with momentum of its own
        raise _refusal(table)
    return _Step(row, place, moving, others, form, total), previous


def _refusal(table: Table) -> ValueError:
    return ValueError(
        f"heavy-ball momentum needs steps from one state along network outputs; {table.method!r} has others"
    )


def _numbers(table: Table) -> list[int]:
    rows: tuple[Row, ...] = table.rows
    used = [v for row in rows for v in (*row.noises, *(u.target for u in row.updates), row.output or 0, *row.reads())]
    return [*used, len(table.anchors)]
