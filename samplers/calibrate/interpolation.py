"""Tables for a guidance scale or a number of calls that was not fitted, from tables of one network that were.

Levels are smooth in both: in the guidance scale level by level, in the number of calls as a curve of λ over the share
of calls made. Rows are interpolated as what was fitted to them, the difference to the exact base at their levels, by
lag and share of calls; compensation ratios by cascade polynomial regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from pathline.interpolants import GaussianPath

from ..nodes import Nodes, points_at, times_at
from ..numerics import Array
from ..registry import build_table, method_info
from ..table import Table
from ..transforms import DATA_MEAN, with_anchor
from .extractor import KEY, fitted_features, marker_of
from .objectives import EndPointError
from .regression import Searched, fit_ratios
from .row_fits import make_reference, trajectory_calls
from .trajectories import Problem
from .triangular import Triangular, triangular
from .untuned import METHODS, STARTS, untuned_tables

_OUTSIDE = 0.1  # of the range of guidance scales: how far beyond it a prediction goes
_DEGREE = 2
_APART = 0.05
_RIVALS = 3  # untuned methods beside the base, each on three grids
_ONE_BASE = (
    "choose and pathline calibrate take whichever base is best, so fit them all with learn_rows(problem, x_init, nfe, "
    "method=..., options=..., grids=[...]), the same for all"
)
SHARES = (1.0, 0.5, 0.0)
"""Shares of the interpolated differences that a judgement tries."""


@dataclass(frozen=True, eq=False)
class Interpolated:
    """An interpolated table judged on a hold-out.

    Attributes
    ----------
    table : Table
    holdout_error, base_error : float
        Mean over samples of the RMSE per value to the converged end points: of the table, and of the best untuned one.
    calls : int
        Network calls of the judgement, references included.
    notes : tuple of str
    """

    table: Table
    holdout_error: float
    base_error: float
    calls: int
    notes: tuple[str, ...] = ()


def interpolate_tables(
    path: GaussianPath,
    tables: Sequence[Table],
    *,
    nfe: int | None = None,
    guidance: float | None = None,
    guidances: Sequence[float] | None = None,
    share: float = 1.0,
) -> Table:
    """A table for another guidance scale or number of calls; no network call.

    Parameters
    ----------
    path : GaussianPath
    tables : sequence of at least 2 Table
        Fitted to one network from one base: of `learn_rows`, or of `search_ratios`; without groups of coordinates.
    nfe : int, optional
        Calls, within those of the tables, which then have one guidance scale.
    guidance : float, optional
        Scale, in the range of those of the tables or 10 % of it outside; they then have one number of calls.
    guidances : sequence of float, optional
        Scales of the tables, where their provenance does not tell.
    share : float in [0, 1]
        Of the differences to the base that is kept; 0 interpolates the levels alone.

    Raises
    ------
    ValueError
        None or both of nfe and guidance, tables of different networks, paths, predictions, feature spaces or bases,
        scales that are not known, or a value too far outside of what was fitted.
    """
    if (nfe is None) == (guidance is None):
        raise ValueError(f"give one of nfe (={nfe!r}) and guidance (={guidance!r}): it says what is interpolated")
    if len(tables) < 2:
        raise ValueError(f"tables holds {len(tables)} of them; at least 2 are needed to interpolate between")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share={share!r} is not possible; it must lie in [0, 1]")
    _check_origins(tables)
    _check_bases(tables)
    scales = _scales(tables, guidances)
    if guidance is not None:
        _check_guidance(tables, scales, guidance)
        weights = _polynomial_weights(np.array(scales, dtype=np.float64), guidance)
        table = _blended(path, tables, weights, tables[0].evaluations, share)
    else:
        assert nfe is not None
        _check_nfe(tables, scales, nfe)
        weights = _neighbour_weights([t.evaluations for t in tables], nfe)
        table = _blended(path, tables, weights, nfe, share)
    if table.method == "dc-solver":
        table = _with_ratios(path, table, tables, scales, guidance)
    first = tables[0].provenance
    kept: dict[str, Any] = {k: first[k] for k in ("path", "prediction", "network", "source") if k in first}
    scale = guidance if guidance is not None else scales[0]
    made = [{"nfe": t.evaluations, "guidance": s} for t, s in zip(tables, scales, strict=True)]
    facts = {"guidance": scale, "nfe": table.evaluations, "interpolated_from": made, "share": share, "calls": 0}
    options = table.options
    if (marker := next((m for m in map(marker_of, tables) if m), None)) is not None:
        kept, options = {**kept, KEY: marker}, {**options, KEY: marker}
    return replace(table, options=options, provenance={**kept, "path": kept.get("path", repr(path)), **facts})


def judged_interpolation(
    problem: Problem,
    x_init: Tensor,
    tables: Sequence[Table],
    *,
    nfe: int | None = None,
    guidance: float | None = None,
    guidances: Sequence[float] | None = None,
    mean: Tensor | None = None,
    chunk: int | None = None,
) -> Interpolated:
    """The best of an interpolated table with all, half and none of its differences, and of untuned methods.

    Parameters
    ----------
    problem : Problem
        Guided with the scale that is asked for.
    x_init : Tensor (B, ...)
        Starts that judge; few are enough to choose among fifteen tables.
    mean : Tensor, optional
        As the tables were fitted with, their anchor "data_mean".
    tables, nfe, guidance, guidances : as in `interpolate_tables`
    chunk : int, optional
        Largest batch given to the network.

    Raises
    ------
    ValueError
        As `interpolate_tables`.
    BudgetError
        Before the first call, when the budget does not pay for references and all candidates.
    """
    asked: dict[str, Any] = {"nfe": nfe, "guidance": guidance, "guidances": guidances}
    found = [interpolate_tables(problem.path, tables, share=share, **asked) for share in SHARES]
    count = found[0].evaluations
    own = {k: v for k, v in _options(found[0]).items() if k != "ratios"}
    methods = [(found[0].method, own), *METHODS[:_RIVALS]]
    plain = [*untuned_tables(problem, count, methods=methods, grids=STARTS).values()]
    batch, before = len(x_init), problem.calls
    problem.require(batch * judging_calls(problem, count), "judging tables")
    end = make_reference(problem, x_init, {}, chunk).end
    judge = EndPointError(problem, x_init, end, chunk, anchors={} if mean is None else {DATA_MEAN: mean})
    errors = [judge(table) for table in (*found, *plain)]
    base = min(errors[len(found) :])
    best = int(np.argmin(errors))
    notes = ["nothing interpolated beat the best untuned method; it is kept"] if best >= len(found) else []
    notes += [f"share {s:g}: {e:.4g}" for s, e in zip(SHARES, errors, strict=False)]
    return Interpolated((*found, *plain)[best], errors[best], base, problem.calls - before, tuple(notes))


def judging_calls(problem: Problem, nfe: int) -> int:
    """Most network calls that a judgement of tables of `nfe` calls takes for each sample."""
    return trajectory_calls(problem) + nfe * (len(SHARES) + 1 + len(STARTS) * (1 + _RIVALS))


# --- checks -------------------------------------------------------------------------------------------------


def _options(table: Table) -> dict[str, Any]:
    known = {*method_info(table.method).options, "afs"}
    return {k: v for k, v in table.options.items() if k in known}


def _check_origins(tables: Sequence[Table]) -> None:
    for key in ("network", "path", "prediction"):
        known = {t.provenance[key]: t for t in tables if key in t.provenance}
        if len(known) > 1:
            raise ValueError(
                f"tables were fitted to another {key} each, {' and '.join(map(str, known))}; give those of one"
            )
    spaces = {space for space in map(fitted_features, tables) if space is not None}
    if len(spaces) > 1:
        raise ValueError(f"tables were fitted in the feature spaces {' and '.join(sorted(spaces))}; give those of one")


def _check_bases(tables: Sequence[Table]) -> None:
    if any(t.basis is not None for t in tables):
        raise ValueError(f"tables have weights for groups of coordinates, which are not interpolated; {_ONE_BASE}")
    bases = [(t.method, {k: v for k, v in _options(t).items() if k != "ratios"}, t.anchors) for t in tables]
    if any(base != bases[0] for base in bases):
        raise ValueError(f"tables have different bases, which cannot be interpolated: {bases}; {_ONE_BASE}")


def _scales(tables: Sequence[Table], guidances: Sequence[float] | None) -> list[float | None]:
    if guidances is None:
        return [t.provenance.get("guidance") for t in tables]
    if len(guidances) != len(tables) or not np.isfinite(guidances).all():
        raise ValueError(f"guidances={tuple(guidances)!r} must be {len(tables)} finite scales, one for each table")
    return [float(g) for g in guidances]


def _check_guidance(tables: Sequence[Table], scales: Sequence[float | None], guidance: float) -> None:
    known = [s for s in scales if isinstance(s, (int, float))]
    if len(known) < len(scales) or len(set(known)) < len(known):
        raise ValueError(f"tables have guidance scales {scales}; give different ones, as guidances=...")
    if len({t.evaluations for t in tables}) > 1:
        raise ValueError(
            f"tables take {[t.evaluations for t in tables]} calls; for another guidance one number is needed"
        )
    beyond = _OUTSIDE * (max(known) - min(known))
    if not min(known) - beyond <= guidance <= max(known) + beyond:
        raise ValueError(
            f"guidance={guidance!r} is too far outside of the fitted scales, {min(known):g} to {max(known):g}"
        )


def _check_nfe(tables: Sequence[Table], scales: Sequence[float | None], nfe: int) -> None:
    counts = [t.evaluations for t in tables]
    if len(set(counts)) < len(counts) or len(set(scales)) > 1:
        raise ValueError(
            f"tables take {counts} calls at guidance {scales}; different numbers of calls at one scale are needed"
        )
    if not min(counts) <= nfe <= max(counts):
        raise ValueError(f"nfe={nfe!r} is outside of the fitted numbers of calls, {min(counts)} to {max(counts)}")


# --- interpolation ------------------------------------------------------------------------------------------


def _polynomial_weights(places: Array, at: float) -> Array:
    """Weights of values at `places` in their least-squares polynomial at `at`: through all of up to three places."""
    degree = min(_DEGREE, len(places) - 1)
    scale = max(float(np.ptp(places)), 1e-12)
    powers = np.vander((places - at) / scale, degree + 1, increasing=True)
    return np.asarray(np.linalg.pinv(powers)[0])


def _neighbour_weights(counts: Sequence[int], nfe: int) -> Array:
    """Linear weights of the two nearest numbers of calls, in 1/calls, in which errors are even."""
    order = np.argsort(counts)
    inverse = 1.0 / np.array(counts, dtype=np.float64)[order]
    weights = np.zeros(len(counts))
    k = int(np.clip(np.searchsorted(np.array(counts)[order], nfe), 1, len(counts) - 1))
    part = (1.0 / nfe - inverse[k - 1]) / (inverse[k] - inverse[k - 1])
    weights[order[k - 1]], weights[order[k]] = 1.0 - part, part
    return weights


def _blended(path: GaussianPath, tables: Sequence[Table], weights: Array, nfe: int, share: float) -> Table:
    steps = nfe + len(tables[0].nodes["signal"]) - 1 - tables[0].evaluations
    used = [(t, w) for t, w in zip(tables, weights, strict=True) if w != 0.0]
    lam = sum((w * _curve(_lam(t)[1:], steps - 1) for t, w in used), np.zeros(steps - 1))
    base = _base(path, tables[0], _in_order(path, lam))
    if share == 0.0 or tables[0].method == "dc-solver":
        return base.table
    rows = list(base.weights)
    forms = [(triangular(t), _base(path, t, _lam(t)[1:]), w) for t, w in used]
    for i in base.free_rows:
        change = sum((w * _difference(fitted, own, i, nfe) for fitted, own, w in forms), np.zeros_like(rows[i]))
        rows[i] = rows[i] + share * change
    return replace(base, weights=tuple(rows)).to_table()


def _lam(table: Table) -> Array:
    """λ of the nodes but the clean end."""
    signal, noise = (np.array(table.nodes[key])[:-1] for key in ("signal", "noise"))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(signal) - np.log(noise))


def _curve(values: Array, count: int) -> Array:
    """Values of calls 1 … n at `count` even places from the first to the last, monotone between them."""
    if len(values) == count:
        return values
    from scipy.interpolate import PchipInterpolator

    places = np.arange(1, len(values) + 1) / (len(values) + 1.0)
    wanted = np.arange(1, count + 1) / (count + 1.0)
    return np.asarray(PchipInterpolator(places, values, extrapolate=True)(wanted))


def _in_order(path: GaussianPath, lam: Array) -> Array:
    low, high = path.lambda_min, path.lambda_max
    lam = np.sort(lam)
    for i in range(len(lam)):
        lam[i] = max(lam[i], (lam[i - 1] if i else low) + _APART)
    return np.minimum(lam, high - _APART * np.arange(len(lam))[::-1])


def _base(path: GaussianPath, table: Table, lam: Array) -> Triangular:
    """The untuned rows of a fitted table's base with nodes at the path's start, at λ, and at the clean end."""
    times = times_at(path, np.concatenate([[float(path.lam(0.0))], lam]))
    times[0] = 0.0
    signal, noise, _, _ = points_at(path, times)
    nodes = Nodes(np.append(signal, 1.0), np.append(noise, 0.0), np.append(times, 1.0), path)
    options = {k: v for k, v in _options(table).items() if k != "ratios"}
    base = build_table(table.method, nodes, **options)
    if DATA_MEAN in table.anchors and DATA_MEAN not in base.anchors:
        base = with_anchor(base, DATA_MEAN)
    return triangular(replace(base, constants=table.constants))


def _difference(fitted: Triangular, base: Triangular, i: int, nfe: int) -> Array:
    """What was fitted to row i of a run of `nfe` calls: by lag, linear in the share of calls made."""
    count, fixed = fitted.calls, fitted.fixed
    found = np.zeros((fixed + i, 1))
    place = i * count / nfe
    low = int(np.clip(np.floor(place), 0, count))
    for row, weight in ((low, 1.0 - (place - low)), (min(low + 1, count), place - low)):
        if weight <= 0.0:
            continue
        change = fitted.weights[row] - base.weights[row]
        found[:fixed] += weight * change[:fixed]
        kept = min(i, row)
        if kept:
            found[-kept:] += weight * change[-kept:]
    return found


def _with_ratios(
    path: GaussianPath,
    table: Table,
    tables: Sequence[Table],
    scales: Sequence[float | None],
    guidance: float | None,
) -> Table:
    """The table with ratios of the regression over all tables."""
    searched = [Searched(t.evaluations, s or 1.0, t.options["ratios"]) for t, s in zip(tables, scales, strict=True)]
    wanted = guidance if guidance is not None else scales[0] or 1.0
    ratios = fit_ratios(searched).regression.predict(table.evaluations, wanted)
    nodes = Nodes(table.nodes["signal"], table.nodes["noise"], table.nodes["time"], path)
    return build_table("dc-solver", nodes, **{**_options(table), "ratios": [float(r) for r in ratios]})
