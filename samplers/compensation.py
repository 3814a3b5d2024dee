"""Dynamic compensation: the newest output moved in time before a step, for any table of one call per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .frames import propagate
from .numerics import Array
from .program import Linear, dot
from .table import Row, Table, Terms, Update

_SAME = 1e-9
Coefficients = tuple[tuple[tuple[float, ...], ...], ...]


def compensated(table: Table, ratios: float | Sequence[float] | Array, *, order: int = 2) -> Table:
    """Move the newest output to another time before every step (Zhao et al. 2024, DC-Solver).

    After the call at node i, and after a corrector has used the raw output there, the stored output becomes
    m_i ← Σ_k m_{i−k}·Π_{l≠k} (t' − t_{i−l})/(t_{i−k} − t_{i−l}) with t' = ρ_i t_i + (1 − ρ_i) t_{i−1}; k and l run from
    0 to `order`, t are the time labels of the network. Steps keep their weights, and later ones go on with the moved
    output. Any ρ ≠ 1 that stays fixed lowers the order to 1.

    Parameters
    ----------
    table : Table
        One call per row, at increasing signal/noise (a corrector after the call is welcome).
    ratios : float or sequence of N floats
        ρ of each step: 1 leaves the output as it is, above 1 extrapolates towards data. The first `order` steps, whose
        history is too short, are 1; a single number stands for all others.
    order : int ≥ 1
        Degree of the interpolation.

    Raises
    ------
    ValueError
        Ratios of another number, that are not finite or not 1 in the first steps; a table with inner stages, with
        equal time labels, or whose outputs are stored in forms that cannot be converted.
    """
    _check_compensable(table)
    values = step_ratios(ratios, len(table.rows), order)
    if (values == 1.0).all():
        return table
    counts = corrector_updates(table)
    first_free = 1 + _largest(table)
    moved: dict[int, int] = {}
    rows: list[Row] = []
    for i, row in enumerate(table.rows):
        own = row.output
        assert own is not None
        corrector = [_renamed(u, moved) for u in row.updates[: counts[i]]]
        change = []
        if values[i] != 1.0:
            terms = _moved_output(table.rows[: i + 1], float(values[i]), order, moved)
            change = [Update(first_free + i, terms)]  # numbered by step, so that another ratio changes no number
            moved[own] = first_free + i
        rest = [_renamed(u, moved) for u in row.updates[counts[i] :]]
        rows.append(replace(row, updates=tuple(corrector + change + rest)))
    mixed = table.stochastic and table.law == "exact" and any(row.form != "data" for row in table.rows)
    return replace(
        table,
        rows=tuple(rows),
        result=moved.get(table.result, table.result),
        law="none: compensation mixes noises of different draws" if mixed else table.law,
    )


def step_ratios(ratios: float | Sequence[float] | Array, steps: int, order: int) -> Array:
    """One ratio for each of `steps` steps from what `compensated` accepts; raises as described there."""
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"dc_order={order!r} is not possible; it must be a whole number of at least 1")
    given = np.asarray(ratios, dtype=np.float64)
    if given.ndim == 0:
        given = np.where(np.arange(steps) < order, 1.0, given)
    if given.shape != (steps,):
        raise ValueError(f"ratios has shape {given.shape}; one for each of the {steps} steps is needed (or one number)")
    if not np.isfinite(given).all():
        raise ValueError(f"ratios[{int(np.argmin(np.isfinite(given)))}] is not finite")
    early = given[:order] != 1.0
    if early.any():
        i = int(np.argmax(early))
        raise ValueError(f"ratios[{i}]={given[i]:g} must be 1: dc_order={order} needs {order + 1} outputs")
    return given


def corrector_updates(table: Table) -> list[int]:
    """For each row how many of its updates correct the state at its own node, rather than lead to the next one."""
    values = propagate(table)
    counts = []
    for row in table.rows:
        here = np.zeros(0) if row.query is None else values[row.query]
        scale = max(1.0, float(np.abs(here).max(initial=0.0)))
        again = [j for j, u in enumerate(row.updates) if np.abs(values[u.target] - here).max() < _SAME * scale]
        counts.append(again[-1] + 1 if again else 0)
    return counts


def _moved_output(rows: Sequence[Row], ratio: float, order: int, moved: dict[int, int]) -> Terms:
    """The output of the last of `rows` at its shifted time, from the outputs of the last order + 1."""
    newest = rows[-1]
    recent = rows[: -order - 2 : -1]
    times = np.array([row.level.time for row in recent])
    weights = lagrange_weights(times, ratio * times[0] + (1.0 - ratio) * times[1])
    outputs = [_in_form(row, moved.get(row.output or 0, row.output or 0), newest.form) for row in recent]
    return tuple((v, float(c)) for v, c in dot(weights, outputs).terms.items())


def lagrange_weights(points: Array, at: float) -> Array:
    """Weights of the polynomial through values at `points` (p,), evaluated at `at`; they sum to 1."""
    apart = points[:, None] - points[None, :]
    np.fill_diagonal(apart, 1.0)
    ahead = np.broadcast_to(at - points, apart.shape).copy()
    np.fill_diagonal(ahead, 1.0)
    return np.asarray((ahead / apart).prod(axis=1))


def _in_form(row: Row, output: int, form: str) -> Linear:
    """A stored output in another form, through the state it was computed at."""
    value, level = Linear({output: 1.0}), row.level
    if row.form == form:
        return value
    state = Linear({row.query or 0: 1.0})
    if (row.form, form) == ("noise", "data") and level.signal > 0.0:
        return (state - level.noise * value) / level.signal
    if (row.form, form) == ("data", "noise") and level.noise > 0.0:
        return (state - level.signal * value) / level.noise
    raise ValueError(f"compensation cannot combine the {row.form} at time {level.time:g} with outputs in {form} form")


def _renamed(update: Update, moved: dict[int, int]) -> Update:
    return Update(update.target, tuple((moved.get(v, v), c) for v, c in update.terms))


def _largest(table: Table) -> int:
    used = [v for row in table.rows for v in (*row.noises, *(u.target for u in row.updates), row.output or 0)]
    return max(len(table.anchors), *used)


def _check_compensable(table: Table) -> None:
    lams = [row.level.lam for row in table.rows]
    times = np.diff([row.level.time for row in table.rows])
    if any(row.query is None for row in table.rows) or not (np.diff(lams) > 0).all():
        raise ValueError(f"compensation needs one call per step and no inner stages; {table.method!r} has others")
    if not ((times > 0).all() or (times < 0).all()):
        raise ValueError("compensation interpolates in the time labels, so all of them must differ")


@dataclass(frozen=True)
class CascadeRegression:
    """Ratios as a polynomial of x = step/NFE whose coefficients are polynomials of guidance and NFE.

    ρ = Σ_k A_k x^k, A_k = Σ_j a_kj (guidance/12)^{J−j}, a_kj = Σ_m c_kjm (NFE/50)^{M−m}; steps are counted from 1 and
    the first two have ρ = 1 (Zhao et al. 2024, section 3.3; powers as in the released code).

    Attributes
    ----------
    coefficients : tuple (K, J + 1, M + 1)
    nfe, guidance : (lowest, highest)
        The range it was fitted in. `predict` uses the nearest values in it: extrapolation is meaningless, because large
        terms cancel.
    """

    coefficients: Coefficients
    nfe: tuple[float, float] = (5, 20)
    guidance: tuple[float, float] = (1.5, 12.0)

    def predict(self, nfe: int, guidance: float) -> Array:
        """Ratios (nfe,) of all steps.

        Raises
        ------
        ValueError
            nfe below 1 or a guidance that is not finite.
        """
        if nfe < 1 or not np.isfinite(guidance):
            raise ValueError(f"nfe={nfe!r}, guidance={guidance!r} is not possible; nfe must be at least 1")
        n = float(np.clip(nfe, *self.nfe)) / NFE_SCALE
        g = float(np.clip(guidance, *self.guidance)) / GUIDANCE_SCALE
        x = np.arange(1, nfe + 1) / nfe
        of_steps = [np.polyval([np.polyval(c, n) for c in row], g) for row in self.coefficients]
        ratios = np.polynomial.polynomial.polyval(x, of_steps)
        return np.where(np.arange(nfe) < PLAIN_STEPS, 1.0, ratios)


NFE_SCALE, GUIDANCE_SCALE = 50.0, 12.0
PLAIN_STEPS = 2
SD21_RATIOS = CascadeRegression(
    (
        (
            (1523.67662, -1111.474645, 198.3834962),
            (-1346.089002, 1007.194941, -186.2547577),
            (168.3973024, -128.0389489, 24.88478975),
        ),
        (
            (-8140.644019, 5906.748279, -1035.994112),
            (6941.413899, -5193.98066, 950.3205653),
            (-848.2104675, 650.6903333, -121.2867428),
        ),
        (
            (13309.27038, -9616.670321, 1668.768596),
            (-11037.10779, 8256.666686, -1503.799204),
            (1293.974044, -999.5629328, 188.2217041),
        ),
        (
            (-6747.421822, 4853.153053, -835.5116793),
            (5489.115184, -4096.897218, 743.0953413),
            (-619.5612763, 480.1497147, -90.89633129),
        ),
    )
)
"""The released regression, for Stable Diffusion 2.1 (UniPC of order 2, grid "linspace", corrector off in step 0)."""
