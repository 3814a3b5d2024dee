"""Flow networks as stochastic samplers: noise levels of the SDE, another path, and its grid (Kim et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pathline.interpolants import GaussianPath, VPPath, check_name, transfer_model

from ..nodes import Nodes, points_at
from ..numerics import Array
from ..registry import build_table
from ..table import Table
from ..wrappers import WrappedModel

DIFFUSIONS: dict[str, Callable[[float, float], float]] = {
    "square": lambda time, noise: time**2,
    "linear": lambda time, noise: time,
    "constant": lambda time, noise: 1.0,
    "sigma": lambda time, noise: noise,
    "sine": lambda time, noise: math.sin(0.5 * math.pi * time),
    "bump": lambda time, noise: math.exp(-(((time - 1.0) / 0.1) ** 2)),
}
"""Shapes of the diffusion g(t), of the time t from data (0) to noise (1) and the path's noise there."""


def diffusion_epsilon(path: GaussianPath, shape: str = "square", scale: float = 3.0) -> Callable[[float], float]:
    """ε = g²/2 as the `epsilon` of method "sde", for g = scale·shape (released: 3·t² on the VP path).

    Raises
    ------
    ValueError
        Unknown shape, or a negative scale.
    """
    of_time = DIFFUSIONS[check_name("shape", shape, tuple(DIFFUSIONS))]
    if not 0.0 <= scale < math.inf:
        raise ValueError(f"scale={scale!r} is not possible; it must be finite and not negative")

    def epsilon(clock: float) -> float:
        noise = float(points_at(path, np.array([clock]))[1][0])
        return 0.5 * (scale * of_time(1.0 - clock, noise)) ** 2

    return epsilon


def rounded_grid(steps: int) -> Array:
    """Path times 1 − √(1 − q²) for even q from 0 to 1: small steps near noise, large ones near data.

    Raises
    ------
    ValueError
        No step.
    """
    if steps < 1:
        raise ValueError(f"steps={steps!r} is not possible; at least 1 is needed")
    q = np.linspace(0.0, 1.0, steps + 1)
    return np.asarray(1.0 - np.sqrt(1.0 - q**2))


def as_diffusion(model: Any, trained_on: GaussianPath, prediction: str, *, path: GaussianPath | None = None) -> Any:
    """A flow network as the model of another path, by default the VP path with β from 0.1 to 20.

    The states of both paths differ by a factor at equal signal-to-noise ratio, and data and noise predictions are the
    same there (`interpolants.transfer_model`). The result predicts the data.
    """
    used_on = VPPath(beta_min=0.1, beta_max=20.0) if path is None else path
    moved = transfer_model(model, trained_on, used_on, prediction, "data")
    return WrappedModel(moved, used_on, "data")


def noisy_flow_table(
    path: GaussianPath, steps: int, *, shape: str = "square", scale: float = 3.0, grid: Array | None = None
) -> Table:
    """Method "sde" with g = scale·shape on `rounded_grid` (or path times of your own): one call in a step."""
    times = rounded_grid(steps) if grid is None else np.asarray(grid, dtype=np.float64)
    signal, noise, _, _ = points_at(path, times)
    return build_table("sde", Nodes(signal, noise, times, path), epsilon=diffusion_epsilon(path, shape, scale))
