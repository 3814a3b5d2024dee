"""Table → table: an analytic first step, a corrector for any method with one call per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pathline.interpolants import unknown_name

from .nodes import Level, Nodes
from .numerics import Array
from .program import Linear, Program, dot
from .table import Row, Table, Terms, Update

AFS_KINDS = ("unit", "zero", "gaussian")
ONES = "ones"
"""Anchor of ones, on which known constants are coefficients; `run` supplies it itself."""
DATA_MEAN = "data_mean"
"""Anchor of the data's mean."""


@dataclass(frozen=True, eq=False)
class AnalyticStart:
    """An analytic first step from the mean and variance of the data, exact where the data are Gaussian.

    D = μ + signal·v/(signal²·v + noise²)·(x − signal·μ), the posterior mean of data ~ N(μ, diag v).

    Attributes
    ----------
    mean : float or array, optional
        μ; an array has the shape of one sample (or broadcasts to it), here as in `variance`. None takes the anchor
        "data_mean" at run time instead (anchors={"data_mean": ...}), which may differ from sample to sample.
    variance : float or array ≥ 0
        v of each coordinate.

    Raises
    ------
    ValueError
        A negative variance, or entries that are not finite.
    """

    mean: float | Array | None = None
    variance: float | Array = 0.0

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("variance", self.variance)):
            values = np.asarray(0.0 if value is None else value, dtype=np.float64)
            if not np.isfinite(values).all() or (name == "variance" and (values < 0).any()):
                least = " and not negative" if name == "variance" else ""
                raise ValueError(
                    f"{name}={value!r} of an analytic first step is not possible; it must be finite{least}"
                )
            if value is not None:
                object.__setattr__(self, name, values if values.ndim else float(values))

    def recorded(self) -> dict[str, Any]:
        """What tables record of it: numbers, and arrays (whose values are in the coefficients) by their shape."""

        def shown(value: float | Array | None) -> float | str | None:
            return f"array of shape {value.shape}" if isinstance(value, np.ndarray) else value

        return {"mean": shown(self.mean), "variance": shown(self.variance)}


def analytic_first_step(table: Table, kind: str | AnalyticStart = "unit") -> Table:
    """Replace the first network call by an estimate that is affine in the state: one evaluation less.

    Parameters
    ----------
    table : Table
        Its first row must query the initial state.
    kind : {"unit", "zero", "gaussian"} or AnalyticStart
        "unit": data of mean 0 and variance 1, so noise ≈ noise·x/(signal² + noise²), in the form of the
        published code (Dockhorn et al. 2022; Zhou et al. 2024): ε = x/√(signal² + noise²).
        "zero": data ≈ 0, so ε = x/noise.
        "gaussian": data ≈ the anchor "data_mean", given to `run` as anchors={"data_mean": ...}, variance 0.
        AnalyticStart(mean, variance): the posterior mean of Gaussian data.

    Raises
    ------
    ValueError
        Unknown kind, or a table whose first call is not at the initial state.
    """
    if not isinstance(kind, AnalyticStart) and kind not in AFS_KINDS:
        raise unknown_name("analytic first step", str(kind), AFS_KINDS)
    first = next((k for k, row in enumerate(table.rows) if row.query is not None), None)
    if first is None or table.rows[first].query != 0 or table.rows[first].estimate is not None or not table.start.noise:
        raise ValueError(
            f"afs={kind!r} needs a table whose first call is at the initial state; {table.method!r} is not"
        )
    if kind == "gaussian":
        kind = AnalyticStart()
    if isinstance(kind, AnalyticStart) and _anchor_of(kind):
        table = with_anchor(table, _anchor_of(kind))
    row = table.rows[first]
    rows = list(table.rows)
    rows[first] = replace(row, estimate=_estimate(row, kind, table.anchors))
    return replace(table, rows=tuple(rows))


def _anchor_of(start: AnalyticStart) -> str:
    """The anchor that the mean is a multiple of; none for mean 0."""
    if start.mean is None:
        return DATA_MEAN
    return ONES if isinstance(start.mean, np.ndarray) or start.mean != 0.0 else ""


def _estimate(row: Row, kind: str | AnalyticStart, anchors: tuple[str, ...]) -> Terms:
    level = row.level
    x = Linear({row.query or 0: 1.0})
    if isinstance(kind, AnalyticStart):
        data = _gaussian_data(level, x, kind, anchors)
        noise = (x - level.signal * data) / level.noise
    elif kind == "zero":
        data, noise = Linear({}), x / level.noise
    else:
        spread = (level.signal**2 + level.noise**2) ** 0.5
        noise = x / spread
        data = x * ((1 - level.noise / spread) / level.signal) if level.signal else Linear({})
    if row.form == "data":
        return _terms(data)
    if row.form == "noise":
        return _terms(noise)
    if level.signal_rate is None or level.noise_rate is None:
        raise ValueError("an analytic first step in velocity form needs the path's rates; pass path=... to Nodes")
    return _terms(level.signal_rate * data + level.noise_rate * noise)


def _gaussian_data(level: Level, x: Linear, start: AnalyticStart, anchors: tuple[str, ...]) -> Linear:
    """Posterior mean of the data at `x` as an expression."""
    gain = level.signal * start.variance / (level.signal**2 * start.variance + level.noise**2)
    data = gain * x
    name = _anchor_of(start)
    if not name:
        return data
    weight = 1.0 - level.signal * gain  # of the mean
    return data + Linear({1 + anchors.index(name): weight if start.mean is None else weight * start.mean})


def _terms(expression: Linear) -> Terms:
    return tuple((v, c) for v, c in expression.terms.items() if isinstance(c, np.ndarray) or c != 0.0)


def denoise_end(table: Table) -> Table:
    """Add a last call that returns the data prediction at the table's end: one evaluation more.

    For tables that stop at a small positive noise, as official samplers do with "denoise to zero".

    Raises
    ------
    ValueError
        The table already ends at noise 0.
    """
    level = table.end
    if level.noise == 0.0:
        raise ValueError(f"table {table.method!r} already ends at noise 0; there is nothing left to denoise")
    used = max(u for row in table.rows for u in (*(t.target for t in row.updates), row.output or 0, *row.noises))
    last = Row(level, "data", table.result, used + 1, None, (), ())
    end = level._replace(signal=1.0, noise=0.0, signal_rate=None, noise_rate=None)
    return replace(table, rows=(*table.rows, last), result=used + 1, end=end)


def with_anchor(table: Table, name: str) -> Table:
    """The same table with one more anchor, if it has it not yet: every later value moves up by one."""
    if name in table.anchors:
        return table
    place = 1 + len(table.anchors)

    def moved(value: int) -> int:
        return value if value < place else value + 1

    def terms(items: Terms) -> Terms:
        return tuple((moved(v), c) for v, c in items)

    rows = tuple(
        replace(
            row,
            query=None if row.query is None else moved(row.query),
            output=None if row.output is None else moved(row.output),
            estimate=None if row.estimate is None else terms(row.estimate),
            noises=tuple(moved(z) for z in row.noises),
            updates=tuple(Update(moved(u.target), terms(u.terms)) for u in row.updates),
        )
        for row in table.rows
    )
    return replace(table, rows=rows, result=moved(table.result), anchors=(*table.anchors, name))


def apply_corrector(
    table: Table, nodes: Nodes, carry: Array, weights: Sequence[Array | None], *, form: str = "data"
) -> Table:
    """Correct every state after the call there: no extra evaluations (predict, evaluate, correct).

    After the call at node i+1 the state is recomputed as carry_i·x_i + Σ_j weights_ij·output_{i−j} +
    weights_i,last·output_{i+1} from the corrected x_i, plus the very noise its prediction was given, and the next
    prediction starts from it. The last step is never corrected, since its end is not evaluated.

    Parameters
    ----------
    table : Table
        One call on each node but the last, no inner stages.
    nodes : Nodes
        The nodes `table` was built on.
    carry : array (N,)
        Factor of the state in every step.
    weights : sequence of N arrays or None
        For each step the weights of the outputs up to node i, newest first, then of the one at node i+1;
        None leaves that step uncorrected.
    form : {"data", "noise"}
        The outputs that `weights` apply to.

    Raises
    ------
    ValueError
        The table has inner stages.
    """
    _check_correctable(table, nodes)
    program = Program(nodes, table.anchors)
    now = {0: program.state} | {1 + i: program.anchor(a) for i, a in enumerate(table.anchors)}
    x, history, drawn = program.state, list[Linear](), Linear({})
    for i, row in enumerate(table.rows):
        assert row.query is not None
        assert row.output is not None
        predicted = now[row.query]
        now[row.output] = program.query(predicted, i, row.form)
        output = _as_form(now[row.output], predicted, row, form)
        w = weights[i - 1] if i else None
        if w is not None:
            outputs = [*history[: len(w) - 1], output]
            now[row.query] = program.let(float(carry[i - 1]) * x + dot(w, outputs) + drawn)
        x = now[row.query]
        history.insert(0, output)
        now |= {z: program.noise() for z in row.noises}
        for target, terms in row.updates:
            now[target] = program.let(dot([c for _, c in terms], [now[v] for v, _ in terms]))
        noise_terms = [(v, c) for v, c in (row.updates[-1].terms if row.updates else ()) if v in row.noises]
        drawn = dot([c for _, c in noise_terms], [now[v] for v, _ in noise_terms])
    corrected = program.finish(now[table.result], frame=table.frame, law=table.law)
    return replace(corrected, method=table.method, options=table.options)


def _as_form(output: Linear, query: Linear, row: Row, form: str) -> Linear:
    if row.form == form or row.level.signal == 0.0:  # at signal 0 only data exists, and nothing weights it
        return output
    return (query - row.level.signal * output) / row.level.noise


def _check_correctable(table: Table, nodes: Nodes) -> None:
    same_levels = len(table.rows) == nodes.steps and all(
        row.level.time == nodes.time[i] for i, row in enumerate(table.rows)
    )
    if not same_levels or any(row.form == "velocity" or row.query is None for row in table.rows):
        raise ValueError("a corrector needs one call on each node but the last (no inner stages, no velocity rows)")
