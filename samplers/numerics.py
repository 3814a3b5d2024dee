"""φ-functions and quadrature weights in float64 on the host: the arithmetic under every linear method."""

from __future__ import annotations

from math import factorial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_SERIES_RADIUS = 1.5  # below it the recursion cancels, above it the series is long
_SERIES_TERMS = 26  # 1.5**26 / 26! < 1e-22

ADAMS_BASHFORTH: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams–Bashforth weights of order 1–4 for equal steps, newest output first."""


def phi(k: int, z: ArrayLike) -> Array:
    """φ_k(z), with φ_0 = exp and φ_{k+1}(z) = (φ_k(z) − 1/k!)/z, φ_k(0) = 1/k!.

    A Taylor branch near 0 keeps full precision, where the recursion would lose about k digits
    for every digit of |z|.

    Parameters
    ----------
    k : int
        Index, k ≥ 0.
    z : array_like
        Finite real numbers, any shape.
    """
    z = np.asarray(z, dtype=np.float64)
    small = np.abs(z) < _SERIES_RADIUS
    series = np.full_like(z, 1.0 / factorial(k + _SERIES_TERMS))
    inner = np.where(small, z, 0.0)
    for j in range(_SERIES_TERMS - 1, -1, -1):
        series = series * inner + 1.0 / factorial(k + j)
    outer = np.where(small, 1.0, z)
    value = np.exp(outer)
    for j in range(k):
        value = (value - 1.0 / factorial(j)) / outer
    return np.where(small, series, value)


def moments(order: int, z: ArrayLike) -> Array:
    """k!·φ_{k+1}(z) for k = 0..order−1: exponential moments ∫_0^1 e^{(1−u)z} u^k du, shape (..., order)."""
    return np.stack([factorial(k) * phi(k + 1, z) for k in range(order)], axis=-1)


def vandermonde_weights(points: ArrayLike, targets: ArrayLike) -> Array:
    """Weights w with Σ_j w_j points_j^k = targets_k, one small system for each leading index.

    Parameters
    ----------
    points : array_like, shape (..., p)
        Distinct nodes; scale them so that they are of order one.
    targets : array_like, shape (..., p)
        Moments k = 0..p−1.

    Returns
    -------
    ndarray, shape (..., p)
    """
    points = np.asarray(points, dtype=np.float64)
    powers = np.arange(points.shape[-1])
    matrix = points[..., None, :] ** powers[:, None]
    solution = np.linalg.solve(matrix, np.asarray(targets, dtype=np.float64)[..., None])[..., 0]
    return np.asarray(solution, dtype=np.float64)


def exponential_weights(points: ArrayLike, z: ArrayLike) -> Array:
    """Weights of ∫_0^1 e^{(1−u)z} f(u) du for f interpolated at `points` (units of the step, start = 0).

    With z = −h they are the exponential Adams weights of the data form (times signal·h), with
    z = +h those of the noise form, with z = −κh those of an SDE of strength κ.

    Parameters
    ----------
    points : array_like, shape (..., p)
        Interpolation nodes: 0 for the newest output, negative for older ones, 1 for a corrector.
    z : array_like, shape (...)
    """
    points = np.asarray(points, dtype=np.float64)
    return vandermonde_weights(points, moments(points.shape[-1], z))


def polynomial_weights(points: ArrayLike) -> Array:
    """Weights of ∫_0^1 f(u) du for f interpolated at `points` (variable-step Adams–Bashforth)."""
    points = np.asarray(points, dtype=np.float64)
    return vandermonde_weights(points, np.broadcast_to(1.0 / np.arange(1, points.shape[-1] + 1), points.shape))
