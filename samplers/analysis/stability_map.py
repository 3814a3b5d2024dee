"""Linear stability of a method: what one step of it makes of its own past, on a linear network.

The method is compiled on a long grid uniform in its own variable. In the middle of such a table the rows repeat, so
the values alive after one period are a fixed matrix times those alive before it, whatever the method (multistep,
stages, momentum, correctors). The largest eigenvalue of that matrix is the amplification per step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pathline.interpolants import LinearPath, unknown_name

from ..nodes import Nodes
from ..numerics import Array
from ..registry import Case, build_table, method_info
from ..table import Coefficient, Row, Table, Terms

Complex = NDArray[np.complex128]
VARIABLES = ("lam", "noise_ratio", "time")
_STEPS = 36  # a multiple of the spans of all singlestep methods, with room for warm-up and for lowering at the end
_FAR = 1e4  # nodes in noise/signal lie this many steps from 0, so that a stage between them is one on a straight line
_LONGEST = 24  # rows of a period
_AGREE = 1e-3
_UNSTABLE = 1e-9


def case_of(method: str, options: dict[str, Any]) -> Case:
    """The declared case of a method that fits its options best; the first one where none does."""
    info = method_info(method)
    given = info.options | {k: v for k, v in options.items() if k in info.options}

    def fits(case: Case) -> int:
        full = info.options | case.options
        return sum(full[k] == given[k] for k in full) if all(given[k] == v for k, v in case.options.items()) else -1

    return max(info.cases, key=fits)


@dataclass(frozen=True)
class Stability:
    """Amplification of a method on a linear network; `stability` makes one.

    Attributes
    ----------
    method, options : the method
    variable : {"lam", "noise_ratio", "time"}
        What z means, with step δ (or h) of the grid:

        noise_ratio: d x̃/d(noise/signal) = ε = κ·x̃ with x̃ = x/signal, z = δ·κ; exact factor e^z.
        time: velocity u = κ·x, z = δ·κ; exact factor e^z.
        lam: d x̃/dλ = D − x̃ with data prediction D = κ·x̃, z = h·κ; exact factor e^{z − h}.
    step : float
        h for "lam"; the two others do not depend on it.
    spans : int
        Steps of the grid in one period of the method.
    calls : float
        Evaluations per step of the grid.
    """

    method: str
    options: dict[str, Any]
    variable: str
    step: float
    spans: int
    calls: float
    _period: _Period = field(repr=False)

    def roots(self, z: ArrayLike) -> Complex:
        """Eigenvalues of the map over one period at complex `z`, shape (*z.shape, number of values alive)."""
        points = np.asarray(z, dtype=np.complex128)
        found = np.linalg.eigvals(self._period.matrices(points.reshape(-1)))
        return np.asarray(found.reshape(*points.shape, -1), dtype=np.complex128)

    def amplification(self, z: ArrayLike) -> Array:
        """Growth per step of the grid at complex `z` (any shape): below 1 errors die out."""
        return np.asarray(np.abs(self.roots(z)).max(axis=-1) ** (1.0 / self.spans))

    def real_limit(self, lowest: float = -1e3) -> float:
        """Lower end of the interval (z, 0) of the negative real axis that is stable; `lowest` where it is longer."""
        points = -np.geomspace(1e-3, -lowest, 3000)
        grows = self.amplification(points) > 1.0 + _UNSTABLE
        if not grows.any():
            return lowest
        first = int(np.argmax(grows))
        low, high = points[first], points[first - 1] if first else 0.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.amplification(middle) > 1.0 + _UNSTABLE else (low, middle)
        return float(high)

    def region(
        self, real: tuple[float, float] = (-3.0, 1.0), imag: tuple[float, float] = (0.0, 2.5), points: int = 201
    ) -> tuple[Array, Array, Array]:
        """Amplification on a grid of the complex plane, for plots: (x (points,), y (points,), values (y, x))."""
        x, y = np.linspace(*real, points), np.linspace(*imag, points)
        return x, y, self.amplification(x[None, :] + 1j * y[:, None])


def stability(method: str, *, variable: str | None = None, step: float = 0.5, **options: Any) -> Stability:
    """The linear stability of a method; of stochastic ones that of the mean.

    Parameters
    ----------
    method : str
        A name of `list_methods()`.
    variable : {"lam", "noise_ratio", "time"}, optional
        The grid is uniform in it; default the method's own, as registered.
    step : float > 0
        Step h in λ, for variable "lam".
    **options
        The method's own.

    Raises
    ------
    ValueError
        Unknown names, or a method without a fixed map per step: bridges, jumps back to more noise, coefficients that
        go on changing along a uniform grid.
    """
    variable = variable or case_of(method, options).variable
    if variable not in VARIABLES:
        raise unknown_name("variable", variable, VARIABLES)
    if not 0 < step < 10:
        raise ValueError(f"step={step!r} is not possible; it must be positive and below 10")
    if method_info(method).requires:
        raise ValueError(f"method {method!r} needs {method_info(method).requires}; its stability is not defined here")
    if "lower_order_final" in method_info(method).options:
        options = {"lower_order_final": False, **options}
    nodes, length = _nodes(variable, step)
    period = _find_period(build_table(method, nodes, **options), variable, length)
    rows = period.rows
    travelled = abs(_place(period.after, variable) - _place(rows[0], variable)) / abs(length)
    spans = round(travelled)
    if spans < 1 or abs(travelled - spans) > 1e-3:
        raise ValueError(f"method {method!r} does not move by whole steps of a grid uniform in {variable!r}")
    calls = sum(row.calls_network for row in rows) / spans
    return Stability(method, dict(options), variable, step, spans, calls, period)


def _nodes(variable: str, step: float) -> tuple[Nodes, float]:
    """A long grid uniform in the variable, where coefficients do not drift, and its step."""
    if variable == "time":
        signal = np.linspace(0.3, 0.7, _STEPS + 1)
        return Nodes(signal, 1 - signal, path=LinearPath()), 0.4 / _STEPS
    if variable == "noise_ratio":
        noise = _FAR + np.arange(_STEPS, -1.0, -1.0)
        return Nodes(np.ones_like(noise), noise), -1.0
    lam = step * (np.arange(_STEPS + 1.0) - _STEPS / 2)
    return Nodes(np.ones_like(lam), np.exp(-lam)), step


def _place(row: Row, variable: str) -> float:
    level = row.level
    return {"time": level.clock, "noise_ratio": level.noise / level.signal, "lam": level.lam}[variable]


@dataclass(frozen=True)
class _Period:
    """Rows that repeat, the values alive before and after them, and the power of noise that each scales with."""

    rows: tuple[Row, ...]
    before: tuple[int, ...]
    ending: tuple[int, ...]
    after: Row
    variable: str
    length: float
    powers: Array

    def matrices(self, z: Complex) -> Complex:
        """Maps from the values alive before the period to those after it, for every z: (len(z), m, m)."""
        count = len(self.before)
        values = {v: np.zeros((count, len(z)), dtype=np.complex128) for v in self.before}
        for place, value in enumerate(self.before):
            values[value][place] = 1.0
        for row in self.rows:
            if row.query is not None and row.output is not None:
                values[row.output] = _linear_output(row, self.variable, z / self.length) * values[row.query]
            for draw in row.noises:
                values[draw] = np.zeros((count, len(z)), dtype=np.complex128)  # the mean of the law
            for target, terms in row.updates:
                values[target] = _combination(terms, values, count, len(z))
        result = np.stack([values[v] for v in self.ending])  # (m after, m before, z)
        # on a grid uniform in λ a noise prediction grows as 1/noise where the state over signal repeats
        start, end = self.rows[0].level.noise ** self.powers, self.after.level.noise**self.powers
        return np.asarray(np.moveaxis(result * (start[None, :, None] / end[:, None, None]), -1, 0))


def _combination(terms: Terms, values: dict[int, Complex], count: int, points: int) -> Complex:
    total = np.zeros((count, points), dtype=np.complex128)
    for value, c in terms:
        total += _number(c) * values[value]
    return total


def _number(c: Coefficient) -> float:
    if isinstance(c, np.ndarray):
        raise ValueError("coefficients per coordinate have no common stability function")
    return c


def _linear_output(row: Row, variable: str, slope: Complex) -> Complex:
    """Factor between query and output for a network that is linear in the method's own variable."""
    level = row.level
    if variable == "time":  # u = signal_rate·D + noise_rate·N and x = signal·D + noise·N
        data, noise = 1.0 + level.noise * slope, 1.0 - level.signal * slope
        velocity = slope
    else:
        data = slope if variable == "lam" else 1.0 - level.noise * slope
        noise = (1.0 - data) / level.noise if variable == "lam" else slope
        velocity = noise * (level.noise_rate or 1.0)
    return {"data": data, "noise": noise, "velocity": velocity}[row.form]


def _find_period(table: Table, variable: str, length: float) -> _Period:
    """The shortest run of rows, in the middle of the table, that repeats in structure and in its map."""
    if _renoises(table):
        raise ValueError(
            f"method {table.method!r} jumps back to more noise between its steps; there is no map per step"
        )
    shapes = [_shape(row) for row in table.rows]
    alive = _alive(table)
    middle = len(table.rows) // 2
    probe = np.array([-0.1 + 0.03j])
    for count in range(1, min(_LONGEST, (len(shapes) - middle - 1) // 2) + 1):
        span = range(middle, middle + count)
        if any(shapes[k] != shapes[k + count] for k in span) or len(alive[middle]) != len(alive[middle + count]):
            continue
        first, second = (_period(table, alive, k, count, variable, length) for k in (middle, middle + count))
        one, two = first.matrices(probe), second.matrices(probe)
        if np.abs(one - two).max() <= _AGREE * max(1.0, float(np.abs(one).max())):
            return first
    raise ValueError(
        f"the coefficients of method {table.method!r} go on changing along a grid uniform in {variable!r}, so that it "
        "has no stability function there"
    )


def _renoises(table: Table) -> bool:
    """True where a call after a row without one is noisier than the call before it."""
    reached, paused = -np.inf, False
    for row in table.rows:
        if row.query is None:
            paused = paused or bool(row.updates)
            continue
        if paused and row.level.lam < reached - 1e-9:
            return True
        reached, paused = row.level.lam, False
    return False


def _period(
    table: Table, alive: list[tuple[int, ...]], start: int, count: int, variable: str, length: float
) -> _Period:
    rows = table.rows[start : start + count]
    powers = np.array([_power(table, v) if variable == "lam" else 0.0 for v in alive[start]])
    return _Period(rows, alive[start], alive[start + count], table.rows[start + count], variable, length, powers)


def _alive(table: Table) -> list[tuple[int, ...]]:
    """For every row the values that exist before it and are still read, in order of creation."""
    now = set(range(1 + len(table.anchors)))
    before: list[tuple[int, ...]] = []
    for row, freed in zip(table.rows, table.last_uses, strict=True):
        before.append(tuple(sorted(now)))
        made = {u.target for u in row.updates} | {z for z in row.noises if z >= 0}
        now = (now | made | ({row.output} if row.output is not None else set())) - set(freed)
    return before


def _shape(row: Row) -> tuple[Any, ...]:
    """What a row does, with values counted from its own output."""
    base = row.output if row.output is not None else 0
    updates = tuple((u.target - base, tuple(v - base for v, _ in u.terms)) for u in row.updates)
    return row.form, None if row.query is None else row.query - base, len(row.noises), updates


def _power(table: Table, value: int) -> float:
    """Power of the noise with which a value scales along a grid uniform in λ: 0 for states and data, −1 for noises."""
    for row in table.rows:
        if row.output == value:
            return -1.0 if row.form == "noise" else 0.0
        for target, terms in row.updates:
            if target == value:  # a state holds data or another state; a momentum holds nothing but noises
                return max(_power(table, v) for v, _ in terms)
    return 0.0
