"""Grid "gaussian": the levels that make one method's error least on Gaussian data, found without a network.

The error is that of `transfer`: the root mean square distance to the probability-flow end point for deterministic
methods, W2 for stochastic ones. It is a sum of squares that is smooth in the levels, so Gauss–Newton steps from the
best named grid settle it in tens of tables. What it knows of the data are variances alone: networks rank differently
from exact models, guidance is outside of it, and below about six evaluations it trusts its model too much.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pathline.interpolants import GaussianPath, unknown_name

from ..grids import make_nodes, register_grid
from ..nodes import Nodes, points_at, times_at
from ..numerics import Array
from ..registry import build_table
from .gaussian_transfer import transfer
from .spectrum import Spectrum, SpectrumLike, as_spectrum

_CANDIDATES = ("logsnr", "karras", "time", "shifted", "exponential")
_STARTS = 2  # of them, the best, that are improved
_TABLES = 40  # Gauss–Newton steps at most, for each of them
_GROUPING = 0.1  # the objective needs the spectrum's shape, not its last digit
_WIDEST = 7.0  # bound of the parameters, which keeps levels apart
_REMEMBERED = 128
_POWER = 3  # squares of the residuals times their norm to this power add up to the norm of power 8
OVER = ("mean", "worst")

_found: OrderedDict[str, Array] = OrderedDict()


@register_grid("gaussian", requires="a spectrum of the data (spectrum=...)")
def gaussian(
    path: GaussianPath,
    levels: int,
    spectrum: SpectrumLike | Sequence[SpectrumLike] | None = None,
    mean: Any = None,
    method: str = "dpm++",
    method_options: Mapping[str, Any] | None = None,
    over: str = "mean",
) -> Array:
    """Levels of least error for `method` on Gaussian data with the given spectrum.

    Parameters
    ----------
    path : GaussianPath
    levels : int
    spectrum : see `as_spectrum`, or a list of them
        Several spectra (of classes, or perturbed) are weighted equally: the mean of their squared errors counts, or
        else the worst (`over`).
    mean : array, optional
        The data's mean, for a spectrum given as an array.
    method, method_options :
        What the levels are for; `sample`, `plan` and the schedulers fill in the method they run, afs included.
    over : {"mean", "worst"}
        How the errors of several spectra count; "worst" is their norm of power 8, each relative to its data's spread.

    Raises
    ------
    ValueError
        No spectrum, one that is none, or a method that Gaussian data do not fit.
    """
    if spectrum is None:
        raise ValueError(
            "grid 'gaussian' needs the data's spectrum: grid_options={'spectrum': variances or a statistics .npz}"
        )
    if over not in OVER:
        raise unknown_name("over of grid 'gaussian'", over, OVER)
    data = [s.grouped(_GROUPING) for s in _spectra(spectrum, mean)]
    options = dict(method_options or {})
    key = _key(path, levels, data, method, options, over)
    if key not in _found:
        _found[key] = _optimise(path, levels, data, method, options, over)
        while len(_found) > _REMEMBERED:
            _found.popitem(last=False)
    return _found[key].copy()


def _spectra(given: Any, mean: Any) -> list[Spectrum]:
    several = isinstance(given, (list, tuple)) and any(
        isinstance(s, (Spectrum, str, os.PathLike)) or hasattr(s, "covariance") or np.ndim(s) > 0 for s in given
    )
    if not several:
        return [as_spectrum(given, mean)]
    if mean is not None:
        raise ValueError("mean goes with one spectrum; of several, give objects or files that bring their own")
    return [as_spectrum(s) for s in given]


def _key(path: GaussianPath, levels: int, data: list[Spectrum], method: str, options: dict[str, Any], over: str) -> str:
    numbers = [[s.values.tolist(), s.counts.tolist(), s.mean_square.tolist()] for s in data]
    return json.dumps([path.config(), levels, numbers, method, options, over], default=repr, sort_keys=True)


def _optimise(
    path: GaussianPath, levels: int, data: list[Spectrum], method: str, options: dict[str, Any], over: str
) -> Array:
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise ValueError("grid 'gaussian' needs scipy: pip install scipy") from error
    ladder = Ladder(path, levels)

    def residuals(nodes: Nodes) -> Array:
        table = build_table(method, nodes, **options)
        return joined([transfer(table, s).residuals() for s in data], data, over)

    starts: list[tuple[float, Array]] = []
    for name in _CANDIDATES:
        lam = make_nodes(path, name, levels).lam[:-1]
        starts.append((float((residuals(ladder.nodes(lam)) ** 2).sum()), lam))
    starts.sort(key=lambda entry: entry[0])
    if ladder.free == 0:
        return ladder.times(starts[0][1])
    make = _quick(ladder, starts[0][1], residuals)
    best, best_error = starts[0][1], starts[0][0]
    for _, lam in starts[:_STARTS]:
        found = least_squares(
            lambda p: residuals(make(ladder.levels(p))),
            ladder.parameters(lam),
            method="trf",
            x_scale=1.0,
            max_nfev=_TABLES,
            ftol=1e-6,
            xtol=1e-5,
            gtol=1e-12,
        )
        if 2 * found.cost < best_error:
            best, best_error = ladder.levels(found.x), 2 * float(found.cost)
    return ladder.times(best)


def joined(residuals: Sequence[Array], data: Sequence[Spectrum], over: str) -> Array:
    """Residuals of several spectra as one vector: the sum of its squares is what `over` makes small."""
    if over == "worst" and len(residuals) > 1:
        relative = [r / s.spread for r, s in zip(residuals, data, strict=True)]
        residuals = [r * np.linalg.norm(r) ** _POWER for r in relative]
    return np.concatenate(residuals) / np.sqrt(len(residuals))


def _quick(ladder: Ladder, lam: Array, residuals: Callable[[Nodes], Array]) -> Callable[[Array], Nodes]:
    """Nodes without their path where the error is the same, which saves most of the time: else with it."""
    try:
        bare, full = residuals(ladder.bare(lam)), residuals(ladder.nodes(lam))
    except ValueError:  # no known family, or a method that asks the path
        return ladder.nodes
    return ladder.bare if np.allclose(bare, full, rtol=0, atol=1e-9 * float(np.abs(full).max())) else ladder.nodes


class Ladder:
    """Levels of a path as unbounded parameters: logarithms of their distances in λ over that to the path's end.

    Parameters
    ----------
    path : GaussianPath
    levels : int
        The path's start among them; the clean end comes after them.
    """

    def __init__(self, path: GaussianPath, levels: int) -> None:
        self.path = path
        self.pure = bool(np.isneginf(float(path.lam(0.0))))
        self.low = path.lambda_min
        self.span = path.lambda_max - path.lambda_min
        self.free = levels - 1
        usual = self.nodes(np.linspace(path.lambda_min, path.lambda_max, max(levels, 2))[:levels])
        self._family = Nodes(usual.signal, usual.noise).family

    def levels(self, parameters: Array) -> Array:
        """λ of all levels; the first is the path's start, and the last one leaves some of the path's range."""
        shares = np.exp(np.clip(parameters, -_WIDEST, _WIDEST))
        inner = self.low + self.span * np.cumsum(shares) / (1.0 + shares.sum())
        return np.concatenate([[-np.inf if self.pure else self.low], inner])

    def parameters(self, lam: Array) -> Array:
        """The inverse of `levels`; levels that are too close or too far are moved."""
        part = np.clip((lam[1:] - self.low) / self.span, 1e-3, 0.98)
        shares = np.maximum(np.diff(np.maximum.accumulate(part), prepend=0.0), 1e-3)
        return np.asarray(np.log(shares / max(1.0 - shares.sum(), 0.02)))

    def times(self, lam: Array) -> Array:
        """Path times of levels."""
        times = times_at(self.path, lam)
        times[0] = 0.0
        return times

    def nodes(self, lam: Array) -> Nodes:
        """The nodes that `make_nodes` makes of levels."""
        times = self.times(lam)
        signal, noise, _, _ = points_at(self.path, times)
        return Nodes(np.append(signal, 1.0), np.append(noise, 0.0), np.append(times, 1.0), self.path)

    def bare(self, lam: Array) -> Nodes:
        """The same from the family that the path belongs to, without asking it."""
        if self._family is None:
            raise ValueError("the path belongs to no family with closed-form levels")
        if self._family == "ve":
            signal, noise = np.ones_like(lam), np.exp(-lam)
        else:
            power = {"linear": 1.0, "vp": 2.0}[self._family]
            signal = np.exp(-np.logaddexp(0.0, -power * lam) / power)
            noise = np.exp(-np.logaddexp(0.0, power * lam) / power)
        return Nodes(np.append(signal, 1.0), np.append(noise, 0.0))
