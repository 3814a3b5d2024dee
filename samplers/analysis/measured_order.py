"""Orders of a method, measured on a small problem with a known solution: no network, a fraction of a second.

Quadrature degrees (`exactness`) do not see what a method does with a network that depends on the state, and nothing
of methods that reach their order only in the limit. So the order is the slope of the error over the number of steps,
on a nonlinear problem without symmetry, on grids uniform in the method's own variable, at finite λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pathline.interpolants import GaussianPath, VPPath, unknown_name

from ..nodes import Nodes, points_at, times_at
from ..numerics import Array
from ..registry import build_table, method_info
from ..table import Row, Table, Terms
from .exactness import states_of
from .gaussian_transfer import transfer
from .stability_map import VARIABLES, case_of

_PATH: GaussianPath = VPPath()
_LAM = (-0.3, 0.35)
_PAST = 60  # steps of exact past: momentum of 1/2 forgets its start to 1e-18
_VARIANCE = 0.3  # of the Gaussian data on which weak orders are measured
_FIT = (1e-11, 1e-2)  # errors that are neither rounding nor far from the limit
_ROUNDING = 1e-9
_SAME = 1e-9


def measured_order(method: str, *, cold: bool = False, variable: str | None = None, **options: Any) -> float:
    """Global order of a method; for stochastic methods the weak order, of the variance of Gaussian data.

    Parameters
    ----------
    method : str
    cold : bool
        True starts without history, as a run does, so that low-order warm-up steps may cap the order; False gives
        the first steps an exact past. Stochastic methods always start cold.
    variable : {"lam", "noise_ratio", "time"}, optional
        The grids are uniform in it; default the method's own, as registered.
    **options
        The method's own. Order lowering at the end is switched off unless asked for.

    Raises
    ------
    ValueError
        Unknown names, a bridge, or errors too small or too large for a slope.
    """
    info = method_info(method)
    if info.requires:
        raise ValueError(f"method {method!r} needs {info.requires}; its order is not measured here")
    case = case_of(method, options)
    variable = variable or case.variable
    if "lower_order_final" in info.options:
        options = {"lower_order_final": False, **options}
    expected = case.cold_order if cold else case.order
    stochastic = _table(method, variable, 6, 0, options).stochastic  # a table of few steps tells
    past = 0 if cold or stochastic else _PAST

    def error(steps: int) -> float:
        table = _table(method, variable, steps, past, options)
        return _law_error(table) if stochastic else _end_error(table)

    counts = _counts(expected, variable)
    if stochastic and expected == 1:  # a variance has no sign to change, so its slope settles early
        counts = [n // 2 for n in counts]
    errors = [error(n) for n in counts]
    if max(errors) < _ROUNDING:  # a method so accurate needs fewer steps to show its order
        counts = [n // 4 for n in counts]
        errors = [error(n) for n in counts]
    return _slope(counts, errors)


def _counts(order: int, variable: str) -> list[int]:
    """Steps at which a method of that order is in its limit and above rounding."""
    if variable == "noise_ratio" and order > 1:
        return [96, 132, 192, 252]  # λ is uneven there, so that the slope settles later
    return {1: [168, 234, 336], 2: [60, 96, 132]}.get(order, [36, 48, 60, 72])


def _table(method: str, variable: str, steps: int, past: int, options: dict[str, Any]) -> Table:
    signal, noise, times = _grid(variable, steps, past)
    if variable != "time":  # velocities need the path; stages come quicker from the family that the nodes belong to
        try:
            return build_table(method, Nodes(signal, noise, times), **options)
        except ValueError:
            pass  # a method that asks the path
    return build_table(method, Nodes(signal, noise, times, _PATH), **options)


def _grid(variable: str, steps: int, past: int) -> tuple[Array, Array, Array]:
    """Signal, noise and time uniform in the variable over a fixed range of λ, and `past` steps before it."""
    low, high = _LAM
    index = np.arange(-past, steps + 1) / steps
    if variable == "time":
        first, last = times_at(_PATH, np.array(_LAM))
        times = first + (last - first) * index
    elif variable == "noise_ratio":
        times = times_at(_PATH, -np.log(np.exp(-low) + (np.exp(-high) - np.exp(-low)) * index))
    elif variable == "lam":
        times = times_at(_PATH, low + (high - low) * index)
    else:
        raise unknown_name("variable", variable, VARIABLES)
    signal, noise, _, _ = points_at(_PATH, times)
    return signal, noise, times


def _slope(counts: Sequence[int], errors: Sequence[float]) -> float:
    kept = [(n, e) for n, e in zip(counts, errors, strict=True) if _FIT[0] < e < _FIT[1]]
    if len(kept) < 3:
        raise ValueError(f"the errors {[f'{e:.2g}' for e in errors]} are too small or too large to measure an order")
    n, e = np.log(np.array(kept)).T
    return float(-np.polyfit(n, e, 1)[0])


def _law_error(table: Table) -> float:
    found = transfer(table, [_VARIANCE])
    return float(np.abs(found.variance - found.target**2)[0])


# --- the problem ----------------------------------------------------------------------------------------
# x/signal follows `_curve` in λ. The data prediction depends on λ and, nonlinearly, on the state, and the three
# components have nothing in common, so that no two errors of a method cancel in all of them.


def _curve(lam: float) -> Array:
    return np.array([np.sin(1.3 * lam + 0.4), np.exp(-0.5 * lam), 0.3 * lam**2 + np.cos(2 * lam)])


def _rate(lam: float) -> Array:
    return np.array([1.3 * np.cos(1.3 * lam + 0.4), -0.5 * np.exp(-0.5 * lam), 0.6 * lam - 2 * np.sin(2 * lam)])


def _network(row: Row, x: Array) -> Array:
    """What the row stores, for the state x."""
    level = row.level
    off = x / level.signal - _curve(level.lam)
    data = _curve(level.lam) + _rate(level.lam) + np.cos(level.lam) * np.sin(off) + 0.3 * off
    noise = (x - level.signal * data) / level.noise
    if row.form == "velocity":
        assert level.signal_rate is not None
        assert level.noise_rate is not None
        return np.asarray(level.signal_rate * data + level.noise_rate * noise)
    return np.asarray(data if row.form == "data" else noise)


def _end_error(table: Table) -> float:
    """Largest error at the end, with exact states and outputs up to the level where the measured range begins."""
    exact = {target: level for row in states_of(table) for target, level, _ in row}
    values: dict[int, Array] = {0: table.start.signal * _curve(table.start.lam)}
    for k, row in enumerate(table.rows):
        past = row.level.lam < _LAM[0] - _SAME
        if row.query is not None and row.output is not None:
            on_curve = row.level.signal * _curve(row.level.lam)
            values[row.output] = _network(row, on_curve if past else values[row.query])
        for target, terms in row.updates:
            level = exact.get(target)
            if past and level is not None:
                values[target] = level.signal * _curve(level.lam)
            else:
                values[target] = _sum(terms, values)
        for value in table.last_uses[k]:
            values.pop(value, None)
    return float(np.abs(values[table.result] - table.end.signal * _curve(table.end.lam)).max())


def _sum(terms: Terms, values: dict[int, Array]) -> Array:
    total = np.zeros(3)
    for value, c in terms:
        total += c * values[value]
    return total
