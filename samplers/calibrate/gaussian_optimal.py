"""Levels and rows that are best on Gaussian data with a given covariance, found without a network call.

Along every principal direction of Gaussian data all that a run computes is linear in its start, so that rows are fitted
in closed form, as `learn_rows` fits them to trajectories, and levels by the grid "gaussian". A covariance is not the
network: rows that are free on one spectrum overfit it, hence several spectra at once, and the ridge to the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pathline.interpolants import GaussianPath, unknown_name

from ..analysis import Spectrum, SpectrumLike, as_spectrum, transfer
from ..analysis.optimal_grid import OVER, Ladder, joined
from ..grids import make_nodes
from ..nodes import Level
from ..numerics import Array
from ..registry import build_table
from ..table import Table
from .triangular import Triangular, triangular

SCALES = (0.5, 1.0, 2.0)
TILTS = (-0.15, 0.0, 0.15)
SHRINKAGE = 1e-3
_GROUPING = 0.1
_STARTS = ("gaussian", "karras", "logsnr", "time")  # levels that the search with fitted rows starts from
_TABLES = 20  # Gauss–Newton steps at most, for each of them
_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class GaussianTable:
    """A table made for Gaussian data.

    Attributes
    ----------
    table : Table
    transfer_error, base_error : float
        Worst (or root mean square) error over the spectra, relative to the spread of the data: of the table, and of
        the base on the best named grid.
    calls : int
        Network calls: none.
    """

    table: Table
    transfer_error: float
    base_error: float
    calls: int = 0


def spectrum_family(
    spectrum: SpectrumLike, *, scales: Sequence[float] = SCALES, tilts: Sequence[float] = TILTS
) -> list[Spectrum]:
    """The spectrum scaled and tilted in all combinations, coarsely grouped; errors as `Spectrum.perturbed`."""
    given = as_spectrum(spectrum).grouped(_GROUPING)
    return [given.perturbed(scale, tilt) for scale in scales for tilt in tilts]


def gaussian_table(
    path: GaussianPath,
    nfe: int,
    spectra: SpectrumLike | Sequence[Spectrum],
    *,
    method: str = "ipndm",
    options: Mapping[str, Any] | None = None,
    shrinkage: float | None = SHRINKAGE,
    over: str = "worst",
) -> GaussianTable:
    """The best table of `nfe` calls for data of these spectra, by closed forms alone.

    Parameters
    ----------
    path : GaussianPath
    nfe : int ≥ 1
    spectra : see `as_spectrum`, or a sequence of Spectrum
        Several, such as a `spectrum_family`, where the data's own is not well known.
    method, options :
        The base: deterministic, one call per step; by default iPNDM-2 with an analytic first step.
    shrinkage : float > 0 or None
        Ridge that draws rows to the base's; None keeps the base's rows and chooses levels alone, as the grid "gaussian"
        does.
    over : {"worst", "mean"}
        What counts of several spectra.

    Raises
    ------
    ValueError
        Arguments out of range, no spectrum, a base that is stochastic or has inner stages.
    """
    from scipy.optimize import least_squares

    if nfe < 1:
        raise ValueError(f"nfe={nfe!r} is not possible; at least 1 call is needed")
    _check(shrinkage, over)
    several = isinstance(spectra, (list, tuple)) and all(isinstance(s, Spectrum) for s in spectra)
    listed: list[Any] = list(spectra) if several else [spectra]  # type: ignore[arg-type]
    data = [as_spectrum(s).grouped(_GROUPING) for s in listed]
    if not data:
        raise ValueError("spectra is empty; give at least one")
    given = dict(options or ({"order": 2, "afs": "unit"} if method == "ipndm" and options is None else {}))
    steps = nfe + bool(given.get("afs", False))
    ladder = Ladder(path, steps)
    told: dict[str, Any] = {"spectrum": data, "over": over, "method": method, "method_options": given}
    starts = {name: make_nodes(path, name, steps, **(told if name == "gaussian" else {})) for name in _STARTS}
    tables = {name: build_table(method, nodes, **given) for name, nodes in starts.items()}
    best = tables["gaussian"]
    if best.evaluations != nfe:
        raise ValueError(f"method {method!r} takes {best.evaluations} calls in {steps} steps; nfe={nfe} does not fit")
    base_error = min(spectra_error(t, data, over) for name, t in tables.items() if name != "gaussian")
    if shrinkage is not None:
        draw = shrinkage

        def fitted(parameters: Array) -> tuple[Triangular, list[Array]]:
            base = triangular(build_table(method, ladder.nodes(ladder.levels(parameters)), **given))
            return _fit([_Run(s, base) for s in data], base, draw)

        found = [
            least_squares(lambda p: joined(fitted(p)[1], data, over), ladder.parameters(nodes.lam[:-1]),
                          max_nfev=_TABLES, ftol=1e-4, xtol=1e-4)
            for nodes in starts.values()
        ] if ladder.free else []  # fmt: skip
        least = min(found, key=lambda f: f.cost).x if found else np.zeros(0)
        best = fitted(least)[0].to_table()
    facts = {"made": "Gaussian transfer", "nfe": nfe, "spectra": len(data), "shrinkage": shrinkage, "calls": 0}
    best = replace(best, provenance={"path": repr(path), **facts})
    return GaussianTable(best, spectra_error(best, data, over), base_error)


def spectra_error(table: Table, spectra: Sequence[Spectrum], over: str = "worst") -> float:
    """Worst or root mean square error over spectra, each relative to the spread of its data."""
    errors = np.array([transfer(table, s).rmse / s.spread for s in spectra])
    return float(errors.max() if over == "worst" else np.sqrt((errors**2).mean()))


def gaussian_rows(base: Triangular, spectra: Sequence[Spectrum], shrinkage: float = SHRINKAGE) -> Triangular:
    """Rows fitted one after the other to the exact states of Gaussian data, drawn to the base's; no network call.

    Row i is base + δ with the least sum of squared errors to the exact state at its level, on what the run itself has
    computed, plus shrinkage·|δ|², in units in which every column has mean square 1. All spectra count alike, relative
    to their spread.

    Parameters
    ----------
    base : Triangular
        Without groups; its only anchor may be "data_mean".
    spectra : sequence of Spectrum
    shrinkage : float > 0

    Raises
    ------
    ValueError
        Groups, another anchor, or a shrinkage that is not positive.
    """
    if base.groups is not None or set(base.table.anchors) - {"data_mean"}:
        raise ValueError(f"rows with groups or anchors {base.table.anchors} are not possible on Gaussian data")
    _check(shrinkage, "mean")
    return _fit([_Run(s, base) for s in spectra], base, shrinkage)[0]


def _check(shrinkage: float | None, over: str) -> None:
    if shrinkage is not None and not shrinkage > 0:
        raise ValueError(f"shrinkage={shrinkage!r} is not possible; it must be positive, or None for the base's rows")
    if over not in OVER:
        raise unknown_name("over", over, OVER)


class _Run:
    """Responses of a run on one spectrum: columns (2J,) of start and mean, weighted so that squares are errors."""

    def __init__(self, spectrum: Spectrum, base: Triangular) -> None:
        start = base.table.start
        self.values, self.start = spectrum.values, start
        self.spread = np.sqrt(start.signal**2 * self.values + start.noise**2)
        self.unweighted = [np.stack([self.spread, np.full_like(self.values, start.signal)])]
        self.unweighted += [np.stack([np.zeros_like(self.values), np.ones_like(self.values)])] * len(base.table.anchors)
        part = np.sqrt(spectrum.counts / spectrum.dimension)
        self.weight = np.stack([part, part * np.sqrt(spectrum.mean_square)])
        self.share = 1.0 / spectrum.spread

    def target(self, level: Level) -> Array:
        """The exact state at a level."""
        return np.stack(
            [np.sqrt(level.signal**2 * self.values + level.noise**2), np.full_like(self.values, level.signal)]
        )

    def call(self, level: Level, state: Array) -> None:
        """Add the data prediction at a state to the columns."""
        total = level.signal**2 * self.values + level.noise**2
        gain = np.divide(level.signal * self.values, total, out=np.zeros_like(total), where=total > 0)
        self.unweighted.append(np.stack([gain * state[0], gain * state[1] + 1.0 - gain * level.signal]))

    def weighted(self, column: Array) -> Array:
        """A column as a vector, relative to the data's spread."""
        return np.asarray((self.weight * column).ravel() * self.share)


def _fit(runs: Sequence[_Run], base: Triangular, shrinkage: float) -> tuple[Triangular, list[Array]]:
    """Rows, and for every run the residuals of its result."""
    weights = list(base.weights)
    states: list[Array] = []
    for i in range(base.calls + 1):
        level = base.table.end if i == base.calls else base.levels[i]
        if i in base.free_rows:
            columns = np.concatenate([np.stack([r.weighted(c) for c in r.unweighted], 1) for r in runs])
            target = np.concatenate([r.weighted(r.target(level)) for r in runs])
            prior = base.weights[i][:, 0]
            scale = np.maximum(np.linalg.norm(columns, axis=0), _TINY)
            scaled = columns / scale
            matrix = scaled.T @ scaled + shrinkage * np.eye(len(scale))
            weights[i] = (prior + np.linalg.solve(matrix, scaled.T @ (target - columns @ prior)) / scale)[:, None]
        states = [np.tensordot(weights[i][:, 0], np.stack(r.unweighted), 1) for r in runs]
        if i < base.calls:
            for run, state in zip(runs, states, strict=True):
                run.call(level, state)
    errors = [(r.weight * (s - r.target(base.table.end))).ravel() for r, s in zip(runs, states, strict=True)]
    return replace(base, weights=tuple(weights)), errors
