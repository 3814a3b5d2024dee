"""Training indices and converted levels of a schedule with betas, as stock schedulers space them."""

from __future__ import annotations

import math

import numpy as np

from ..numerics import Array
from .spacing import Spacing


def spaced_indices(steps: int, lambdas: Array, spacing: Spacing) -> Array:
    """Training indices of `steps` calls, falling; whole but for an unrounded "linspace".

    Parameters
    ----------
    steps : int from 1 to N
    lambdas : (N,)
        log(signal/noise) of the training levels, index 0 first.
    spacing : Spacing

    Raises
    ------
    ValueError
        More steps than levels.
    """
    levels = len(lambdas)
    total = levels - int(np.searchsorted(lambdas[::-1], spacing.lowest_lambda))
    if steps > total:
        raise ValueError(f"num_inference_steps={steps} is not possible; the model has {total} levels")
    count = steps + 1 if spacing.fenced else steps
    if spacing.kind == "trailing":
        # a clipped schedule keeps the stride of the whole one, and so has fewer steps
        kept = min(steps, math.ceil(total * steps / levels - 1e-9))
        return np.asarray(np.round(total - np.arange(kept) * (levels / steps)) - 1.0, dtype=np.float64)
    if spacing.kind == "linspace":
        rising = np.linspace(0, total - 1, count) if count > 1 else np.array([total - 1.0])
        return np.asarray((np.round(rising) if spacing.whole else rising)[::-1][:steps], dtype=np.float64)
    falling = np.arange(count, dtype=np.float64)[::-1][:steps]
    return np.asarray(falling * (total // count) + spacing.offset, dtype=np.float64)


def converted(kind: str, high: float, low: float, count: int) -> Array:
    """Karras (rho 7), exponential or beta levels: `count` of them from high to low, or high alone."""
    if kind == "karras":
        return np.asarray(np.linspace(high ** (1 / 7), low ** (1 / 7), count) ** 7)
    if kind == "exponential":
        return np.geomspace(high, low, count)
    return beta_levels(low, high, count)


def beta_levels(low: float, high: float, count: int) -> Array:
    """`count` values from high to low at the quantiles of Beta(0.6, 0.6) (Lee et al. 2024)."""
    from scipy.stats import beta

    return low + np.asarray(beta.ppf(1.0 - np.linspace(0.0, 1.0, count), 0.6, 0.6)) * (high - low)
