"""Grids: where on the path the network is evaluated."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from pathline.interpolants import DiscretePath, GaussianPath, StochasticInterpolant, check_name, unknown_name

from .bridge_grids import BRIDGE_GRIDS, bridge_nodes
from .nodes import Nodes, points_at, times_at
from .numerics import Array

Grid = Callable[..., Array]
Times = TypeVar("Times", Array, Tensor)
AYS: dict[str, tuple[float, ...]] = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034),
}
"""Noise/signal of the ten steps of "Align Your Steps" (Sabour, Fidler and Kreis 2024); the run ends at 0."""
TRAIN_STEPS = 1000
"""Number of levels that the diffusers grids assume on a continuous path."""


@dataclass(frozen=True)
class GridInfo:
    """A registered grid.

    Attributes
    ----------
    name : str
    levels : function (path, levels, **options) -> increasing path times, one for each level
    requires : the option without which the grid cannot be made, in words ("" when none)
    """

    name: str
    levels: Grid
    requires: str = ""

    @property
    def options(self) -> list[str]:
        """Names of the grid's options."""
        return list(inspect.signature(self.levels).parameters)[2:]

    def options_for(self, method: str, options: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
        """Grid options `given` by a caller who samples with `method`: a grid made for one method is told which."""
        told = {"method": method, "method_options": dict(options)} if "method" in self.options else {}
        return told | dict(given or {})


_GRIDS: dict[str, GridInfo] = {}


def register_grid(name: str, *, requires: str = "") -> Callable[[Grid], Grid]:
    """Decorator that adds a grid: a function (path, levels, **options) that returns `levels` increasing path times.

    Parameters
    ----------
    name : str
    requires : str
        The option without which the grid cannot be made, in words.

    Raises
    ------
    ValueError
        The name is taken.
    """

    def add(grid: Grid) -> Grid:
        if name in _GRIDS and _GRIDS[name].levels is not grid:
            raise ValueError(f"grid {name!r} is already registered by {_GRIDS[name].levels.__module__}")
        _GRIDS[name] = GridInfo(name, grid, requires)
        return grid

    return add


def _register(grid: Grid) -> Grid:
    return register_grid(grid.__name__)(grid)


def list_grids() -> list[str]:
    """Names of the grids that `make_nodes` and `sample` accept."""
    return sorted(_GRIDS)


def grid_info(name: str) -> GridInfo:
    """The registered facts of a grid.

    Raises
    ------
    ValueError
        Unknown name; the message lists the nearest ones.
    """
    if name not in _GRIDS:
        raise unknown_name("grid", name, _GRIDS)
    return _GRIDS[name]


def make_nodes(
    path: GaussianPath | StochasticInterpolant,
    grid: str | Sequence[float] | Array,
    steps: int | None = None,
    *,
    final: str = "zero",
    **options: Any,
) -> Nodes:
    """Nodes of `path` on a grid.

    A named grid chooses `steps` levels; the outermost one is moved to the path's exact start, and the clean end
    (noise 0) is added, so that there are `steps` steps and the last one returns the data prediction.

    Parameters
    ----------
    path : GaussianPath or StochasticInterpolant
        On a bridge the grids and options are those of `bridge_nodes`.
    grid : str or sequence of float
        A name of `list_grids()`, or increasing path times, both ends included.
    steps : int ≥ 1
        Number of steps; not used with explicit times.
    final : {"zero", "path"}
        "path" stops at the grid's smallest noise instead (steps + 1 levels and no clean end).
    **options
        Options of the grid: rho (karras), shift (shifted), offset (leading), alpha and beta (beta), spectrum and
        more (gaussian, see `analysis.optimal_grid`).

    Raises
    ------
    ValueError
        Unknown grid or option, fewer than one step, times that do not increase or lie outside [0, 1].
    """
    if isinstance(path, StochasticInterpolant):
        if isinstance(grid, str):
            check_name("grid of a bridge", grid, BRIDGE_GRIDS)
        return bridge_nodes(path, grid, steps, final=final, **options)
    if final not in ("zero", "path"):
        raise ValueError(f"final={final!r} is not possible; allowed: 'zero', 'path'")
    if not isinstance(grid, str):
        return _user_nodes(path, grid, options)
    info = grid_info(grid)
    if steps is None or steps < 1:
        raise ValueError(f"steps={steps!r} is not possible; at least 1 step is needed")
    for key in options:
        if key not in info.options:
            raise unknown_name(f"option of grid {grid!r}", key, info.options)
    levels = steps + (final == "path")
    times = np.asarray(info.levels(path, levels, **options), dtype=np.float64)
    if np.isneginf(float(path.lam(0.0))):
        times[0] = 0.0  # one call at pure noise costs no more than one at lambda_min, and is exact
    return _path_nodes(path, times, clean_end=final == "zero")


def _user_nodes(path: GaussianPath, times: Sequence[float] | Array, options: dict[str, Any]) -> Nodes:
    if options:
        raise ValueError(f"explicit times take no grid options, got {sorted(options)}")
    values = np.asarray(times, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"explicit times must be one-dimensional with at least 2 entries, got shape {values.shape}")
    if not (np.diff(values) > 0).all() or values[0] < 0 or values[-1] > 1:
        raise ValueError(f"explicit times must increase within [0, 1] (0 = noise, 1 = data), got {values.tolist()}")
    return _path_nodes(path, values, clean_end=False)


def _path_nodes(path: GaussianPath, times: Array, clean_end: bool) -> Nodes:
    signal, noise, _, _ = points_at(path, times)
    if clean_end:
        end = path.at(1.0)
        signal = np.append(signal, float(end.signal) if float(end.noise) == 0.0 else 1.0)
        noise, times = np.append(noise, 0.0), np.append(times, 1.0)
    return Nodes(signal, noise, times, path)


def shift_time(t: Times, shift: float) -> Times:
    """Times shifted towards the noise end: τ' = shift·τ/(1 + (shift − 1)·τ) with τ = 1 − t."""
    return t / (shift + (1.0 - shift) * t)


def _discrete(path: GaussianPath, index: Array) -> Array:
    """Times of (fractional) training indices; rounded to integers where the path is discrete."""
    if isinstance(path, DiscretePath):
        return 1.0 - (np.round(index) + 1.0) / path.steps
    return 1.0 - (index + 1.0) / TRAIN_STEPS


def _train_steps(path: GaussianPath) -> int:
    return path.steps if isinstance(path, DiscretePath) else TRAIN_STEPS


@_register
def time(path: GaussianPath, levels: int) -> Array:
    """Uniform in the path's time."""
    clean = np.isposinf(float(path.lam(1.0)))
    return np.linspace(0.0, 1.0, levels + 1)[:-1] if clean else np.linspace(0.0, 1.0, levels)


@_register
def logsnr(path: GaussianPath, levels: int, cleanest: float | None = None) -> Array:
    """Uniform in λ between the path's lambda_min and lambda_max.

    Parameters
    ----------
    cleanest : float, optional
        Noise/signal of the last level, in the place of lambda_max's if that is smaller: few levels are spent badly on
        the last details.

    Raises
    ------
    ValueError
        cleanest is not between 0 and the noise/signal of lambda_min.
    """
    low, high = path.lambda_min, path.lambda_max
    if cleanest is not None:
        most = math.exp(-low)
        if not 0.0 < cleanest < most:
            raise ValueError(f"cleanest={cleanest!r} is not possible; it must lie between 0 and {most:g}")
        high = min(high, -math.log(cleanest))
    return times_at(path, np.linspace(low, high, levels))


@_register
def karras(path: GaussianPath, levels: int, rho: float = 7.0) -> Array:
    """(noise/signal)^{1/ρ} uniform between the path's extremes (Karras et al. 2022, eq. 5)."""
    if not rho > 0:
        raise ValueError(f"rho={rho!r} is not possible; it must be positive")
    low, high = np.exp(-path.lambda_max / rho), np.exp(-path.lambda_min / rho)
    return times_at(path, -rho * np.log(np.linspace(high, low, levels)))


@_register
def exponential(path: GaussianPath, levels: int) -> Array:
    """Uniform in the logarithm of the schedule's own level: noise on linear paths, noise/signal on the others."""
    if not path.constant_rates:
        return logsnr(path, levels)
    _, noise, _, _ = points_at(path, times_at(path, np.array([path.lambda_min, path.lambda_max])))
    return 1.0 - np.geomspace(noise[0], noise[1], levels)


@_register
def trailing(path: GaussianPath, levels: int) -> Array:
    """Equal steps counted from the noise end, as `timestep_spacing="trailing"` in diffusers."""
    total = _train_steps(path)
    return _discrete(path, total - 1.0 - np.arange(levels, dtype=np.float64) * (total / levels))


@_register
def leading(path: GaussianPath, levels: int, offset: int = 0) -> Array:
    """Equal steps counted from the data end, as `timestep_spacing="leading"`; `offset` is `steps_offset`."""
    stride = _train_steps(path) // levels
    return _discrete(path, np.arange(levels, dtype=np.float64)[::-1] * stride + offset)


@_register
def linspace(path: GaussianPath, levels: int) -> Array:
    """Equally spaced training indices with the first and last one included, the last one dropped."""
    return _discrete(path, np.linspace(_train_steps(path) - 1.0, 0.0, levels + 1)[:-1])


@_register
def shifted(path: GaussianPath, levels: int, shift: float = 3.0) -> Array:
    """Uniform in time, then shifted towards noise: τ' = shift·τ/(1 + (shift − 1)τ) with τ = 1 − t."""
    if not shift > 0:
        raise ValueError(f"shift={shift!r} is not possible; it must be positive")
    return shift_time(time(path, levels), shift)


@_register
def beta(path: GaussianPath, levels: int, alpha: float = 0.6, beta: float = 0.6) -> Array:
    """Quantiles of a Beta distribution in time (Lee et al. 2024), dense at both ends."""
    from scipy.stats import beta as distribution

    return 1.0 - np.asarray(distribution.ppf(1.0 - np.linspace(0.0, 1.0, levels + 1)[:-1], alpha, beta))


@_register
def ays(path: GaussianPath, levels: int, model: str = "sd15") -> Array:
    """Published schedules of Align Your Steps; other numbers of levels by interpolation of log(noise/signal).

    The first level is the path's own, where its noise begins.

    Parameters
    ----------
    model : {"sd15", "sdxl", "svd"}

    Raises
    ------
    ValueError
        Unknown model, or a path that does not reach these levels.
    """
    if model not in AYS:
        raise unknown_name("schedule of grid 'ays'", model, AYS)
    ratios = np.log(AYS[model])
    place = np.linspace(0.0, len(ratios) - 1.0, levels) if levels > 1 else np.zeros(1)
    lam = -np.interp(place, np.arange(len(ratios)), ratios)
    lam[0] = path.lambda_min
    times = times_at(path, lam)
    if not (np.diff(times) > 0).all():
        raise ValueError(
            f"the schedule {model!r} goes from noise/signal {AYS[model][0]:g} to {AYS[model][-1]:g}, which "
            f"path {path.name!r} does not reach"
        )
    return times
