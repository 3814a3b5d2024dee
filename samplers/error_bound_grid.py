"""Grid "dmn": the levels of least error bound for a multistep solver, found from the path alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pathline.interpolants import GaussianPath, unknown_name

from .grids import register_grid
from .nodes import times_at
from .numerics import Array, exponential_weights

SPACES = ("pixel", "latent")
_ROUGH = 3  # steps whose errors are taken as independent, as released
_DIFFERENCE = 1e-6
_SEARCHES, _GAIN = 20, 1e-4


@register_grid("dmn")
def dmn(path: GaussianPath, levels: int, space: str = "pixel") -> Array:
    """Levels of least error bound for the data form of order 3 (Xue et al. 2024, "optimized time steps").

    The bound is Σ_n e_n·|Σ_i J_in| over all steps i, with J_in the exact weight of output n in step i and e_n the error
    expected of it: σ/α in pixel space, σ²/α in latent space. It knows the path and the number of levels alone.

    Parameters
    ----------
    space : {"pixel", "latent"}

    Raises
    ------
    ValueError
        Unknown space.
    """
    if space not in SPACES:
        raise unknown_name("space of grid 'dmn'", space, SPACES)
    if levels < 3:
        return times_at(path, np.linspace(path.lambda_min, path.lambda_max, levels))
    return times_at(path, np.array(_least_bound(path.lambda_min, path.lambda_max, levels - 1, space)))


def error_bound(lam: Array, space: str) -> Array:
    """The bound that `dmn` minimises, for levels λ (..., N + 1), both ends included.

    Order 1 in the first and last step, 2 in those next to them, 3 between. The errors of the first three steps count as
    independent, as in the released code.
    """
    steps = lam.shape[-1] - 1
    noise = np.exp(-np.logaddexp(0.0, 2.0 * lam) / 2.0)
    expected = np.exp(-lam) * (noise if space == "latent" else 1.0)
    h = np.diff(lam)
    orders = np.minimum(3, np.minimum(np.arange(steps) + 1, steps - np.arange(steps)))
    signed, bound = np.zeros_like(h), np.zeros(lam.shape[:-1])
    for order in (1, 2, 3):
        chosen = np.flatnonzero(orders == order)
        if not len(chosen):
            continue
        used = chosen[:, None] - np.arange(order)
        points = (lam[..., used] - lam[..., chosen, None]) / h[..., chosen, None]
        scale = h[..., chosen] * np.exp(lam[..., chosen + 1])
        terms = scale[..., None] * exponential_weights(points, -h[..., chosen]) * expected[..., used]
        alone = (chosen < _ROUGH) | (chosen == steps - 1)
        bound += np.sqrt((terms[..., alone, :] ** 2).sum(-1)).sum(-1)
        for k in np.flatnonzero(~alone):
            signed[..., used[k]] += terms[..., k, :]
    return np.asarray(bound + np.abs(signed).sum(-1))


@lru_cache(maxsize=128)
def _least_bound(low: float, high: float, steps: int, space: str) -> tuple[float, ...]:
    """Minimise over the shares of the gaps, which keep the levels in order without constraints.

    The bound has kinks, so each search goes on from where the last one stopped until that gains nothing.
    """
    from scipy.optimize import minimize

    def levels(parameters: Array) -> Array:
        shares = np.exp(parameters - parameters.max(-1, keepdims=True))
        ends = np.cumsum(shares, -1) / shares.sum(-1, keepdims=True)
        return low + (high - low) * np.concatenate([np.zeros_like(ends[..., :1]), ends], -1)

    def with_slope(parameters: Array) -> tuple[float, Array]:
        around = parameters + _DIFFERENCE * np.concatenate([np.eye(steps), -np.eye(steps)])
        values = error_bound(levels(around), space)
        slope = (values[:steps] - values[steps:]) / (2 * _DIFFERENCE)
        return float(error_bound(levels(parameters), space)), slope

    best, value = np.zeros(steps), np.inf
    for _ in range(_SEARCHES):
        found = minimize(with_slope, best, jac=True, method="BFGS")
        if found.fun > value * (1.0 - _GAIN):
            break
        best, value = found.x, found.fun
    return tuple(float(v) for v in levels(best))
