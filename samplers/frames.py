"""Exactness by construction: every table is checked in its own frame before it is used.

A frame feeds the table known outputs and follows the coefficients:

point_mass
    Constant data D and noise N: every query and the result must equal signal·D + noise·N (+ anchor·source).
    Stochastic rows are checked in law: for point-mass data the noise seen by every query must have variance
    noise² (noise outputs are then what an exact network would return at that query).
velocity
    Constant velocity u: every query must equal x₀ + (time − time₀)·u.
none: reason
    Nothing is promised; `residuals` still reports the point-mass defect.
"""

from __future__ import annotations

import numpy as np

from .numerics import Array
from .table import Row, Table, Terms

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
    if table.frame == "velocity":
        return _follow(table, _velocity_start, _velocity_output, _velocity_residual)
    return _follow(table, _mass_start, _mass_output, _mass_residual)


def _follow(table: Table, start, output, residual) -> Array:  # type: ignore[no-untyped-def]
    values: dict[int, Array] = start(table)
    width = len(values[0])
    found = np.zeros(len(table.rows) + 1)

    def combine(terms: Terms) -> Array:
        total = np.zeros(width)
        for value, c in terms:
            total = total + _scalar(c) * values[value]
        return total

    noise_column = width - sum(len(r.noises) for r in table.rows)
    for k, row in enumerate(table.rows):
        for z in row.noises:
            if z >= 0:
                values[z] = np.eye(1, width, noise_column)[0]
            noise_column += 1
        if row.query is not None and row.output is not None:
            found[k] = residual(table, values[row.query], row.level)
            values[row.output] = output(table, row, values[row.query])
        for target, terms in row.updates:
            values[target] = combine(terms)
    found[-1] = residual(table, values[table.result], table.end)
    return found


def _scalar(c: float | Array) -> float:
    # per-coordinate coefficients share their invariants, so the first coordinate stands for all
    return float(c.reshape(-1)[0]) if isinstance(c, np.ndarray) else c


# point mass: columns are D, source, N, then every fresh noise


def _mass_start(table: Table) -> dict[int, Array]:
    width = 3 + sum(len(r.noises) for r in table.rows)
    values = {i + 1: np.eye(1, width, 1)[0] for i in range(len(table.anchors))}
    first = np.zeros(width)
    first[:3] = table.start.signal, table.start.anchor, table.start.noise
    values[0] = first
    return values


def _mass_output(table: Table, row: Row, query: Array) -> Array:
    width = len(query)
    level = row.level
    data = np.eye(1, width, 0)[0]
    if row.form == "data":
        return data
    noise = np.eye(1, width, 2)[0]
    if table.stochastic and level.noise > 0:
        noise = (query - level.signal * data) / level.noise
    if row.form == "noise":
        return noise
    if level.signal_rate is None or level.noise_rate is None:
        raise ValueError(f"row at time {level.time:g} stores velocity, but the path's rates are unknown")
    return level.signal_rate * data + level.noise_rate * noise


def _mass_residual(table: Table, value: Array, level) -> float:  # type: ignore[no-untyped-def]
    mean = abs(value[0] - level.signal) + abs(value[1] - level.anchor)
    if not table.stochastic:
        return float(mean + abs(value[2] - level.noise))
    if table.law != "exact":
        return float(mean)
    return float(mean + abs(np.linalg.norm(value[2:]) - level.noise))


# velocity: columns are x₀ and the time integral of u


def _velocity_start(table: Table) -> dict[int, Array]:
    width = 2 + sum(len(r.noises) for r in table.rows)
    values = {i + 1: np.zeros(width) for i in range(len(table.anchors))}
    values[0] = np.eye(1, width, 0)[0]
    return values


def _velocity_output(table: Table, row: Row, query: Array) -> Array:
    if row.form != "velocity":
        raise ValueError(f"frame 'velocity' needs rows that store velocity, got {row.form!r}")
    return np.eye(1, len(query), 1)[0]


def _velocity_residual(table: Table, value: Array, level) -> float:  # type: ignore[no-untyped-def]
    return float(abs(value[0] - 1.0) + abs(value[1] - (level.time - table.start.time)))
