"""Exactness by construction: every table is checked in its own frame before it is used.

A frame feeds the table known outputs and follows the coefficients:

point_mass
    Constant data D and noise N: every query and the result must equal signal·D + noise·N (+ anchor·source).
    Stochastic rows are checked in law: for point-mass data the noise seen by every query must have variance
    noise² (noise outputs are then what an exact network would return at that query).
velocity
    Constant velocity u: every query must equal x₀ + (clock − clock₀)·u.
none: reason
    Nothing is promised; `residuals` still reports the point-mass defect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .nodes import Level
from .numerics import Array
from .table import Row, Table

TOLERANCE = 1e-8
"""Largest allowed residual relative to the largest level of the table."""


class InvariantError(ValueError):
    """A table is not exact in the frame it declares; the message names the row and the residual."""


def check(table: Table) -> None:
    """Raise unless the table is exact in its declared frame.

    Raises
    ------
    InvariantError
        With the first offending row and its residual.
    ValueError
        Unknown frame or law.
    """
    if table.frame.startswith("none"):
        return
    if table.frame not in ("point_mass", "velocity"):
        raise ValueError(f"unknown frame {table.frame!r}; use 'point_mass', 'velocity' or 'none: reason'")
    found = residuals(table)
    scale = max(1.0, table.start.noise, table.start.signal)
    bad = ~(found <= TOLERANCE * scale)
    if bad.any():
        row = int(np.argmax(bad))
        place = f"the query of row {row}" if row < len(table.rows) else "the result"
        raise InvariantError(
            f"table {table.method!r} is not exact in frame {table.frame!r}: residual {found[row]:.3g} at {place}"
        )


def residuals(table: Table) -> Array:
    """Residual at every row's query and, last, at the result; 0 for rows without a query."""
    frame = _VELOCITY if table.frame == "velocity" else _POINT_MASS
    values = propagate(table)
    found = np.zeros(len(table.rows) + 1)
    for k, row in enumerate(table.rows):
        if row.query is not None:
            found[k] = frame.residual(table, values[row.query], row.level)
    found[-1] = frame.residual(table, values[table.result], table.end)
    return found


def propagate(table: Table) -> dict[int, Array]:
    """Every value of the table as coefficients in its frame's basis.

    Returns
    -------
    dict of value number -> array
        Point mass: coefficients of (data, source, initial noise, fresh noise 1, …). Velocity: of (x₀, u, …).
    """
    frame = _VELOCITY if table.frame == "velocity" else _POINT_MASS
    fresh = sum(len(row.noises) for row in table.rows) if table.stochastic else 0
    width = frame.width + fresh
    values = frame.start(table, width)
    column = frame.width
    for row in table.rows:
        for z in row.noises if fresh else ():
            values[z] = np.eye(1, width, column)[0]
            column += 1
        if row.query is not None and row.output is not None:
            values[row.output] = frame.output(table, row, values[row.query])
        for target, terms in row.updates:
            total = np.zeros(width)
            for value, c in terms:
                total += _scalar(c) * values[value]
            values[target] = total
    return values


def _scalar(c: float | Array) -> float:
    # per-coordinate coefficients share their invariants, so the first coordinate stands for all
    return float(c.reshape(-1)[0]) if isinstance(c, np.ndarray) else c


class _Frame(NamedTuple):
    width: int
    start: Callable[[Table, int], dict[int, Array]]
    output: Callable[[Table, Row, Array], Array]
    residual: Callable[[Table, Array, Level], float]


def _mass_start(table: Table, width: int) -> dict[int, Array]:
    values = {i + 1: np.eye(1, width, 1)[0] for i in range(len(table.anchors))}
    values[0] = np.zeros(width)
    values[0][:3] = table.start.signal, table.start.anchor, table.start.noise
    return values


def _mass_output(table: Table, row: Row, query: Array) -> Array:
    level = row.level
    data = np.eye(1, len(query), 0)[0]
    if row.form == "data":
        return data
    noise = np.eye(1, len(query), 2)[0]
    if table.stochastic and level.noise > 0:
        noise = query.copy()
        noise[:2] = 0.0  # what the query holds of data and source, and its norm, is checked there
        noise /= np.linalg.norm(noise) or 1.0
    if row.form == "noise":
        return noise
    if level.signal_rate is None or level.noise_rate is None:
        raise ValueError(f"row at time {level.time:g} stores velocity, but the path's rates are unknown; pass path=...")
    return level.signal_rate * data + level.noise_rate * noise


def _mass_residual(table: Table, value: Array, level: Level) -> float:
    mean = abs(value[0] - level.signal) + abs(value[1] - level.anchor)
    if not table.stochastic:
        return float(mean + abs(value[2] - level.noise))
    if table.law != "exact":
        return float(mean)
    return float(mean + abs(np.linalg.norm(value[2:]) - level.noise))


def _velocity_start(table: Table, width: int) -> dict[int, Array]:
    return {i: np.eye(1, width, 0)[0] if i == 0 else np.zeros(width) for i in range(1 + len(table.anchors))}


def _velocity_output(table: Table, row: Row, query: Array) -> Array:
    if row.form != "velocity":
        raise ValueError(f"frame 'velocity' needs rows that store velocity, got {row.form!r}")
    return np.eye(1, len(query), 1)[0]


def _velocity_residual(table: Table, value: Array, level: Level) -> float:
    return float(abs(value[0] - 1.0) + abs(value[1] - (level.clock - table.start.clock)))


_POINT_MASS = _Frame(3, _mass_start, _mass_output, _mass_residual)
_VELOCITY = _Frame(2, _velocity_start, _velocity_output, _velocity_residual)
