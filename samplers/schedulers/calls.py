"""A table cut at its network calls: what happens between two of them, ready to be executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import coefficients

from ..anchors import how_to_give, missing_anchors
from ..border import row_conversions
from ..combine import Combiner, Evaluator
from ..nodes import Level
from ..table import Row, Table, Terms, Update
from .data_range import Rule
from .passes import inlined, passes, unit_first, without

_SAME = 1e-9  # two coefficients computed from the same levels
_MODERATE = 1e-3  # registers stay within a factor of this of the values they stand for


Work = tuple[tuple[int, Evaluator], ...]
"""Targets, and what computes them, in order."""


class Draw(NamedTuple):
    """Fill `value` with the normals of (row, slot)."""

    value: int
    row: int
    slot: int


class Call(NamedTuple):
    """One network call and everything up to the next one.

    Attributes
    ----------
    level : where the network is called
    query, output : values
    stored : whether anything reads the output value; else the updates read RAW
    convert : (c_x, c_out), register = c_x·query + c_out·RAW, which is the network's output, or the data prediction
        where the plan has a rule
    scale : output value = scale·register
    data : (c_x, c_out) giving the data prediction from the network output, before a rule of the plan; None where the
        output value is it, () where it is undefined
    draws, updates : executed in order
    frees : values that nothing reads afterwards
    returns : the value handed to the caller: the next call's query, or the result
    """

    level: Level
    query: int
    output: int
    stored: bool
    convert: tuple[float, float]
    scale: float
    data: tuple[float, float] | tuple[()] | None
    draws: tuple[Draw, ...]
    updates: tuple[Update, ...]
    frees: tuple[int, ...]
    returns: int


@dataclass(frozen=True)
class Plan:
    """The calls of a table; `lead` is computed from the initial state before the first one.

    With a `rule`, every call's data prediction goes through it, and the output value is computed from the result.
    `before_step` counts the first calls of a late start that belong to a step begun before. `unscaled` is the same plan
    with registers that are the output values themselves, for a run whose registers others see; None where they are.
    """

    table: Table
    lead: tuple[Update, ...]
    calls: tuple[Call, ...]
    rule: Rule | None = None
    before_step: int = 0
    unscaled: Plan | None = None

    def prepare(self, device: torch.device) -> None:
        """Make everything that a run on a device asks for; compilers cannot trace how cached properties are made."""
        self.draws_on(device)
        _ = self.places, self.table.has_arrays

    @cached_property
    def draws(self) -> tuple[tuple[int, int], ...]:
        """(row, slot) of all noise, in the order of its use."""
        return tuple((draw.row, draw.slot) for call in self.calls for draw in call.draws)

    def work_on(self, state: Tensor) -> tuple[Work, ...]:
        """The updates before the first call, then those of each call, as functions of states like this one.

        They are made once; a compiled loop has its own.
        """
        if torch.compiler.is_compiling():
            return self._work(Combiner(state.device, self.table.basis))
        kind = state.device, state.dtype
        if kind not in self._work_on:
            self._work_on[kind] = self._work(Combiner(state.device, self.table.basis, lasting=state.dtype))
        return self._work_on[kind]

    def _work(self, combine: Combiner) -> tuple[Work, ...]:
        groups = (self.lead, *(call.updates for call in self.calls))
        return tuple(tuple((u.target, combine.evaluator(u.terms)) for u in updates) for updates in groups)

    @cached_property
    def _work_on(self) -> dict[tuple[torch.device, torch.dtype], tuple[Work, ...]]:
        return {}

    @cached_property
    def places(self) -> dict[tuple[int, int], int]:
        """Numbers of the draws."""
        return {draw: place for place, draw in enumerate(self.draws)}

    def draws_on(self, device: torch.device) -> Tensor:
        """`draws` as an int64 tensor (R, 2) on a device, copied there once."""
        if device not in self._draws_on:
            self._draws_on[device] = torch.tensor(self.draws, dtype=torch.int64).reshape(-1, 2).to(device)
        return self._draws_on[device]

    @cached_property
    def _draws_on(self) -> dict[torch.device, Tensor]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """A plan never changes, so copies of a scheduler in mid-run share it."""
        return self


def compile_plan(table: Table, prediction: str, sign: float, rule: Rule | None = None) -> Plan:
    """Cut `table` at its calls.

    Parameters
    ----------
    table : Table
    prediction : one of pathline's predictions
    sign : factor of the network's output
    rule : map of the data prediction, optional

    Raises
    ------
    ValueError
        The table needs anchors or draws noise before its first call, or a row (or the rule) needs what the network
        cannot give there.
    """
    if missing := missing_anchors(table):
        raise ValueError(
            f"method {table.method!r} with options {table.options} needs {', '.join(sorted(missing))}, which a "
            f"diffusers pipeline does not supply; use pathline.samplers.sample(..., anchors=...){how_to_give(table)}"
        )
    table = correct_from_query(table)
    conversions = row_conversions(table, prediction if rule is None else "data")
    places = [k for k, row in enumerate(table.rows) if row.calls_network]
    if any(z >= 0 for row in table.rows[: places[0]] for z in row.noises):
        raise ValueError(
            f"method {table.method!r} adds noise before its first network call, which a diffusers pipeline makes "
            "at the initial latents; use pathline.samplers.sample(...)"
        )
    calls = list[Call]()
    for place, after in zip(places, [*places[1:], len(table.rows)], strict=True):
        row = table.rows[place]
        assert row.query is not None
        assert row.output is not None
        c_x, c_out = conversions[place]
        draws, updates = _operations(table, place, after)
        returns = table.rows[after].query if after < len(table.rows) else table.result
        assert returns is not None
        frees = tuple(v for k in range(place if calls else 0, after) for v in table.last_uses[k])
        data = _data(row, prediction, sign, rule)
        convert = (c_x, c_out if rule is not None else sign * c_out)
        updates = inlined(updates, set(frees))
        stored = row.output not in frees
        if not stored:
            spared = without(updates, row.output, row.query, convert)
            stored = passes(spared) > passes(updates) + (convert != (0.0, 1.0))
            updates = updates if stored else spared
            data = convert if data is None and not stored else data
        updates = tuple(Update(u.target, unit_first(u.terms)) for u in updates)
        calls.append(Call(row.level, row.query, row.output, stored, convert, 1.0, data, draws, updates, frees, returns))
    plain = Plan(table, _operations(table, 0, places[0])[1], tuple(calls), rule)
    scaled = _scaled(calls)
    return plain if all(call.scale == 1.0 for call in scaled) else replace(plain, calls=scaled, unscaled=plain)


def _scaled(calls: Sequence[Call]) -> tuple[Call, ...]:
    """Outputs kept as query + c·RAW, one operation less than c_x·query + c_out·RAW; the readers make it good."""
    visible = {value for call in calls for value in (call.query, call.returns)}
    scales = {
        call.output: call.convert[0]
        for call in calls
        if call.stored and _MODERATE < abs(call.convert[0]) < 1 / _MODERATE and call.output not in visible
    }
    return tuple(_rescaled(call, scales) for call in calls)


def _rescaled(call: Call, scales: Mapping[int, float]) -> Call:
    """A call for registers that are the values over `scales`."""
    terms = (tuple((v, c * scales[v] if v in scales else c) for v, c in u.terms) for u in call.updates)
    updates = tuple(Update(u.target, unit_first(t)) for u, t in zip(call.updates, terms, strict=True))
    scale, (c_x, c_out) = scales.get(call.output, 1.0), call.convert
    return call._replace(convert=(c_x / scale, c_out / scale), scale=scale, updates=updates)


def _operations(table: Table, start: int, stop: int) -> tuple[tuple[Draw, ...], tuple[Update, ...]]:
    draws, updates = list[Draw](), list[Update]()
    for k in range(start, stop):
        row = table.rows[k]
        if row.estimate is not None and row.output is not None:
            updates.append(Update(row.output, row.estimate))
        draws += [Draw(z, k, slot) for slot, z in enumerate(row.noises) if z >= 0]
        updates += row.updates
    return tuple(draws), tuple(updates)


def _data(row: Row, prediction: str, sign: float, rule: Rule | None) -> tuple[float, float] | tuple[()] | None:
    if row.form == "data" and rule is None:
        return None
    level = row.level
    try:
        c_x, c_out = coefficients(level.signal, level.noise, level.signal_rate, level.noise_rate, prediction, "data")
    except ValueError as error:
        if rule is not None:
            raise ValueError(
                f"the scheduler's config applies {rule} to the data prediction, which a {prediction} network does not "
                f"determine at time {level.time:g} (signal {level.signal:g}): {error}"
            ) from None
        return ()  # the method itself does not need it there, as noise networks at signal 0
    return c_x, sign * c_out


def correct_from_query(table: Table) -> Table:
    """The same table with correctors that start from the query they correct.

    A corrected state and the query it replaces (UniPC, SA-Solver) are the same earlier state plus different
    outputs, so state' = query + Σ (difference of weights)·output. Written so, a pipeline's edit of the query
    reaches the corrected state, the rounding is smaller, and the earlier state is freed. A state that is itself
    handed to the caller next (an inner stage such as Heun's) keeps its own base: an edit of an inner query is
    an edit of that query only.
    """
    outputs = {row.output for row in table.rows if row.output is not None}
    definitions = dict[int, Terms]()
    rows = []
    queries = [row.query if row.calls_network else None for row in table.rows]
    for k, row in enumerate(table.rows):
        handed = next((q for q in queries[k + 1 :] if q is not None), table.result)
        updates = []
        for update in row.updates:
            if row.query in definitions and update.target != handed:
                update = Update(update.target, _rebased(update.terms, row.query, definitions[row.query], outputs))
            definitions[update.target] = update.terms
            updates.append(update)
        rows.append(replace(row, updates=tuple(updates)))
    return replace(table, rows=tuple(rows))


def _rebased(terms: Terms, query: int, definition: Terms, outputs: set[int]) -> Terms:
    """`terms` as query + outputs where both have the same part in states and noises, else unchanged."""
    own = {v: c for v, c in terms if not isinstance(c, np.ndarray)}
    base = {v: c for v, c in definition if not isinstance(c, np.ndarray)}
    if len(own) < len(terms) or len(base) < len(definition):  # coefficients for each coordinate
        return terms
    states, base_states = own.keys() - outputs, base.keys() - outputs
    if not states or states != base_states or any(abs(own[v] - base[v]) > _SAME * abs(base[v]) for v in states):
        return terms
    weights = {v: own.get(v, 0.0) - base.get(v, 0.0) for v in [*own, *base] if v in outputs}
    return ((query, 1.0), *((v, c) for v, c in weights.items() if c != 0.0))
