"""Tables for runs that begin at a later call: from there on a fresh run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np

from ..nodes import Level, Nodes
from ..registry import build_table
from ..table import Row, Table, Terms, Update
from .family import Schedule

Build = Callable[[Nodes], Table]
_SAME_TIME = 1e-9


class BuildLate(Protocol):
    """Builds a run over the nodes that are left when the first steps are left out."""

    def __call__(self, nodes: Nodes, *, left_out: int) -> Table:
        """The table on `nodes`."""


def full_table(build: Build, schedule: Schedule) -> Table:
    """The table of a schedule, with one idle call more where the last step has length zero."""
    table = build(schedule.nodes)
    return with_idle_call(table) if schedule.idle_end else table


def late_table(build: BuildLate, schedule: Schedule, levels: Sequence[Level]) -> tuple[Table, int]:
    """A fresh run over calls at exactly `levels`, the remaining ones of a run.

    The method restarts, with empty history, at the first of them that is a node and from which its fresh calls
    are the remaining ones. Calls before that one (a run that begins in the middle of a step) become first-order
    steps to the next level, which have length zero between two calls at the same level. Where a fresh run would call
    elsewhere (PLMS, which takes its first step twice), DPM-Solver++ goes over the remaining levels.

    Parameters
    ----------
    build : function (nodes, steps left out) -> table
    schedule : Schedule
    levels : sequence of Level
        At least one.

    Returns
    -------
    The table, and how many calls come before the step at which it restarts.
    """
    nodes = schedule.nodes
    ahead = nodes.time[nodes.time >= levels[0].time - _SAME_TIME]
    for skipped, level in enumerate(levels):
        if level.time > ahead[:2][-1] + _SAME_TIME:  # the step that the run begins in is over
            break
        place = int(np.argmin(np.abs(nodes.time[:-1] - level.time)))
        if abs(nodes.time[place] - level.time) > _SAME_TIME:
            continue
        table = full_table(partial(build, left_out=place), replace(schedule, nodes=nodes.part(place)))
        if _same_calls(table, levels[skipped:]):
            return _prepended(table, levels[:skipped]), skipped
    return _substitute(schedule, levels)


def _substitute(schedule: Schedule, levels: Sequence[Level]) -> tuple[Table, int]:
    """DPM-Solver++ over the levels, from the last one at which the run turns back to more noise.

    Calls at the end's own level have nothing left to do.
    """
    end = schedule.nodes.level(schedule.nodes.steps)
    calls = [level for level in levels if level.time < end.time - _SAME_TIME]
    turns = [k for k in range(1, len(calls)) if calls[k].time <= calls[k - 1].time + _SAME_TIME]
    first = turns[-1] if turns else 0
    if calls:
        signal, noise, time = (np.array([level[k] for level in (*calls[first:], end)]) for k in (1, 2, 0))
        table = build_table("dpm++", Nodes(signal, noise, time, schedule.nodes.path))
    else:
        table = Table(rows=(), start=end, end=end, result=0, nodes=schedule.nodes.config(), method="idle")
    for _ in range(len(levels) - len(calls)):
        table = with_idle_call(table)
    return _prepended(table, calls[:first]), first


def with_idle_call(table: Table) -> Table:
    """One more call at the end whose output changes nothing."""
    row = Row(table.end, "data", table.result, _next_value(table), None, (), ())
    return replace(table, rows=(*table.rows, row))


def _same_calls(table: Table, levels: Sequence[Level]) -> bool:
    calls = [row.level.time for row in table.rows if row.calls_network]
    return len(calls) == len(levels) and all(
        abs(t - level.time) <= _SAME_TIME for t, level in zip(calls, levels, strict=True)
    )


def _prepended(table: Table, levels: Sequence[Level]) -> Table:
    """First-order data steps from each level to the next and to the table's start, then the table."""
    if not levels:
        return table
    free, x, rows = _next_value(table), 0, list[Row]()
    for here, there in zip(levels, [*levels[1:], table.start], strict=True):
        output, free = free, free + 1
        updates: tuple[Update, ...] = ()
        if abs(here.time - there.time) > _SAME_TIME:
            carry = there.noise / here.noise
            terms = ((x, carry), (output, there.signal - carry * here.signal))
            updates, free = (Update(free, terms),), free + 1
        rows.append(Row(here, "data", x, output, None, (), updates))
        x = updates[0].target if updates else x
    return replace(
        table,
        rows=(*rows, *(_renamed(row, x) for row in table.rows)),
        start=levels[0],
        result=x if table.result == 0 else table.result,
    )


def _renamed(row: Row, start: int) -> Row:
    """The row with value 0 called `start`."""

    def terms(items: Terms) -> Terms:
        return tuple((start if v == 0 else v, c) for v, c in items)

    return replace(
        row,
        query=start if row.query == 0 else row.query,
        estimate=None if row.estimate is None else terms(row.estimate),
        updates=tuple(Update(u.target, terms(u.terms)) for u in row.updates),
    )


def _next_value(table: Table) -> int:
    used = [len(table.anchors)]
    for row in table.rows:
        used += [*row.noises, *(u.target for u in row.updates)]
        used += [] if row.output is None else [row.output]
    return 1 + max(used)
