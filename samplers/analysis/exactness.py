"""What the coefficients of a table say by themselves: exactness of every row, and weight on old outputs.

Exactness is counted in the sense of quadrature. The outputs are made polynomials of degree k in one of the variables
in which methods are derived, every state is made exact, and the next state is compared with the exact one. A row that
is right for k = 0 … p − 1 has degree p: the order of a multistep method that interpolates, the stage order of an
inner stage. Rules that reach their order only as the step shrinks (DPM-Solver++'s midpoint, UniPC's B(h)) have a
lower degree than order, and state-dependent conditions are not seen: `measured_order` covers both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import factorial

import numpy as np

from ..frames import propagate
from ..nodes import Level
from ..numerics import Array, phi
from ..table import Coefficient, Row, Table, Terms

DEGREES = 7
_TOLERANCE = 1e-8
_SAME = 1e-7

Values = dict[int, Array]


@dataclass(frozen=True)
class Exactness:
    """Degrees in the variable in which the table is most exact.

    Attributes
    ----------
    basis : str
        Which outputs are polynomials in which variable, such as "data in λ".
    degrees : tuple of int
        For every row that computes the state at the next row's level the number of powers, from 1 up, for which it is
        exact; a row at or next to λ = ±∞ has degree 1 at most.
    corrected : tuple of int
        The same of the rows that compute the state at their own level anew (correctors).
    """

    basis: str
    degrees: tuple[int, ...]
    corrected: tuple[int, ...] = ()

    @property
    def typical(self) -> int:
        """Most frequent degree, the larger one of equals: that of the steps between start and end."""
        return max(set(self.degrees), key=lambda d: (self.degrees.count(d), d))

    def __str__(self) -> str:
        text = " ".join(map(str, self.degrees))
        corrected = f", corrected {' '.join(map(str, self.corrected))}" if self.corrected else ""
        return f"{text}{corrected} ({self.basis})"


def exactness(table: Table) -> Exactness | None:
    """Degree of exactness of every row in the best basis; None for stochastic tables, bridges and free frames."""
    if table.stochastic or table.anchors or table.has_arrays:
        return None
    if table.frame.startswith("none"):
        return None
    states = states_of(table)
    in_velocity = table.frame == "velocity"
    found = [
        Exactness(name, *_degrees(table, states, basis))
        for name, basis in _BASES.items()
        if (basis.form == "velocity") == in_velocity
    ]
    return max(found, key=lambda e: sum(e.degrees))


def history_weight(table: Table) -> tuple[float, ...]:
    """Σ|w| / |Σ w| over the output weights of every row that computes a state; 1 where none counts against another.

    Independent errors of the outputs enter a step this much larger than a common one, and it is the price of order:
    exact Adams–Bashforth has 2 at order 2, 3.7 at 3, 6.7 at 4. Momentum and other sums of outputs are expanded, and
    outputs of another form than the newest are converted.
    """
    states = states_of(table)
    known = {target for row in states for target, _, _ in row} | set(range(1 + len(table.anchors)))
    definitions = {u.target: u.terms for row in table.rows for u in row.updates}
    outputs = {row.output: row for row in table.rows if row.output is not None}
    found = []
    for row_states in states:
        if row_states:
            weights = list(_output_weights(row_states[-1][0], definitions, outputs, known).values())
            if abs(sum(weights)) > 0:
                found.append(sum(map(abs, weights)) / abs(sum(weights)))
    return tuple(found)


def _output_weights(
    target: int, definitions: dict[int, Terms], outputs: dict[int, Row], states: set[int]
) -> dict[int, float]:
    """Weight of every output in the update of `target`, sums of outputs expanded, in the form of the newest one."""
    weights: dict[int, float] = {}
    todo = [(v, _first(c)) for v, c in definitions[target]]
    while todo:
        value, weight = todo.pop()
        if value in outputs:
            weights[value] = weights.get(value, 0.0) + weight
        elif value in definitions and value not in states:
            todo += [(v, weight * _first(c)) for v, c in definitions[value]]
    if not weights:
        return weights
    form = outputs[max(weights)].form
    return {v: w * _conversion(outputs[v], form) for v, w in weights.items()}


def _first(c: Coefficient) -> float:
    return float(np.ravel(c)[0])  # of coefficients per coordinate the first stands for all


def _conversion(row: Row, form: str) -> float:
    """d(output in its own form) / d(output in `form`), at a fixed state."""
    level = row.level
    if row.form == form or level.signal == 0.0 or level.noise == 0.0:
        return 1.0
    by_data = {"data": 1.0, "noise": -level.signal / level.noise}
    by_data["velocity"] = (level.signal_rate or 0.0) + (level.noise_rate or 0.0) * by_data["noise"]
    return by_data[row.form] / by_data[form]


# --- states ---------------------------------------------------------------------------------------------

States = list[list[tuple[int, Level, bool]]]


def states_of(table: Table) -> States:
    """For every row the computed values that are states: (value, level, True where it is the next row's level)."""
    try:
        frame = propagate(table)
    except ValueError:  # velocity rows of a table without rates
        return [[] for _ in table.rows]
    levels = [row.level for row in table.rows] + [table.end]
    found: States = []
    for k, row in enumerate(table.rows):
        found.append([])
        for target, _ in row.updates:
            for level, ahead in ((levels[k + 1], True), (levels[k], False)):
                if _matches(table, frame[target], level):
                    found[-1].append((target, level, ahead))
                    break
    return found


def _matches(table: Table, value: Array, level: Level) -> bool:
    if table.frame == "velocity":
        return bool(abs(value[0] - 1.0) + abs(value[1] - (level.clock - table.start.clock)) < _SAME)
    off = abs(value[0] - level.signal) + abs(value[1] - level.anchor)
    if not table.stochastic:
        off += abs(value[2] - level.noise)
    return bool(off < _SAME * max(1.0, level.noise))


# --- exactness ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Basis:
    """Outputs of one form that are powers of one variable, and the states that belong to them.

    `state(τ, w, centre)` is x/signal (x for velocity) for every degree, with the variable at centre + w·τ and 0 at
    τ = 0; `unit(w, centre)` is its size.
    """

    form: str
    variable: Callable[[Level], float]
    state: Callable[[float, float, float], Array]
    unit: Callable[[float, float], float]


def _power_integral(tau: float, z: float) -> Array:
    """∫_0^τ e^{z(τ−s)} s^k ds for k = 0 … DEGREES − 1."""
    return np.array([factorial(k) * tau ** (k + 1) * float(phi(k + 1, z * tau)) for k in range(DEGREES)])


def _plain_integral(tau: float, w: float, centre: float) -> Array:
    k = np.arange(1, DEGREES + 1)
    return np.asarray(w * tau**k / k)


def _ratio(level: Level) -> float:
    return level.noise / level.signal if level.signal > 0 else np.inf


_BASES = {
    "data in λ": _Basis("data", lambda p: p.lam, lambda t, w, c: w * _power_integral(t, -w), lambda w, c: abs(w)),
    "noise in λ": _Basis(
        "noise",
        lambda p: p.lam,
        lambda t, w, c: -w * np.exp(-c - w * t) * _power_integral(t, w),
        lambda w, c: abs(w) * np.exp(-c),
    ),
    "noise in noise/signal": _Basis("noise", _ratio, _plain_integral, lambda w, c: abs(w)),
    "velocity in time": _Basis("velocity", lambda p: p.clock, _plain_integral, lambda w, c: abs(w)),
}


def _degrees(table: Table, states: States, basis: _Basis) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Degrees of every row that computes the next state, and of every row that corrects its own."""
    found: dict[bool, list[int]] = {True: [], False: []}
    for k, row_states in enumerate(states):
        kinds = {ahead for _, _, ahead in row_states}
        for ahead, error in _row_errors(table, states, k, basis).items():
            right = error < _TOLERANCE  # NaN, where something infinite took part, is not
            degree = DEGREES if right.all() else int(np.argmin(right))
            if ahead in kinds:
                found[ahead].append(max(1, degree))  # at least the frame, in which every table is checked
    return tuple(found[True]), tuple(found[False])


def _row_errors(table: Table, states: States, k: int, basis: _Basis) -> dict[bool, Array]:
    """Errors of the states of row k by degree, with polynomials centred on its level in units of its step."""
    levels = [row.level for row in table.rows] + [table.end]
    centre = basis.variable(levels[k])
    lengths = [basis.variable(levels[k + 1]) - centre, centre - basis.variable(levels[max(k - 1, 0)])]
    width = next((w for w in lengths if np.isfinite(w) and w != 0), np.nan)
    errors = {True: np.zeros(DEGREES), False: np.zeros(DEGREES)}
    if not np.isfinite([centre, lengths[0], width]).all():
        return {ahead: np.full(DEGREES, np.nan) for ahead in errors}

    @cache
    def exact(level: Level) -> tuple[Array, Array]:
        """(state, output in the basis' form) at a level, one entry per degree."""
        tau = (basis.variable(level) - centre) / width
        if not np.isfinite(tau):
            return np.full(DEGREES, np.nan), np.full(DEGREES, np.nan)
        state = basis.state(tau, width, centre)
        powers = np.array([tau**k for k in range(DEGREES)])
        return state if basis.form == "velocity" else level.signal * state, powers

    values: Values = {0: exact(table.start)[0]}
    for j, row in enumerate(table.rows[: k + 1]):
        if row.output is not None:
            state, output = exact(row.level)
            values[row.output] = _as_form(output, state, row, basis.form)
        known = {target: (level, ahead) for target, level, ahead in states[j]}
        for target, terms in row.updates:
            values[target] = _dot(terms, values)
            if target in known:
                level, ahead = known[target]
                state = exact(level)[0]
                if j == k:
                    unit = basis.unit(width, centre) * (1.0 if basis.form == "velocity" else level.signal)
                    errors[ahead] = np.maximum(errors[ahead], np.abs(values[target] - state) / unit)
                values[target] = state
    return errors


def _dot(terms: Terms, values: Values) -> Array:
    total = np.zeros(DEGREES)
    for value, c in terms:
        total = total + _first(c) * values[value]
    return total


def _as_form(output: Array, state: Array, row: Row, form: str) -> Array:
    level = row.level
    if row.form == form:
        return output
    if form == "velocity" or row.form == "velocity" or 0.0 in (level.signal, level.noise):
        return np.full(DEGREES, np.nan)
    if form == "noise":
        return (state - level.noise * output) / level.signal
    return (state - level.signal * output) / level.noise
