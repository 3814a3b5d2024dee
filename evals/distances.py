"""Distances between laws given by feature arrays or moments: Fréchet, kernel (KID, RBF MMD), sliced Wasserstein.

All arithmetic is float64 on the host. Nothing here knows where features come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .moments import Moments, as_rows


class Estimate(NamedTuple):
    """A value with the spread of the repeats behind it (standard deviation, not standard error)."""

    value: float
    spread: float


def _square_root(sigma: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(sigma)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def frechet_from_moments(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
    r"""Squared Fréchet (2-Wasserstein) distance of two Gaussians.

    .. math:: \|\mu_1-\mu_2\|^2 + \mathrm{tr}\,\Sigma_1 + \mathrm{tr}\,\Sigma_2
              - 2\,\mathrm{tr}(\Sigma_1^{1/2}\Sigma_2\Sigma_1^{1/2})^{1/2}

    The root is taken of a symmetric matrix through ``eigh`` with eigenvalues clipped at 0, so the result is
    real for singular covariances too. Dowson & Landau (1982); as a score of generators: Heusel et al. (2017),
    eq. 6. Rounding may leave a value of about -1e-6 relative; it is not clamped here.

    Parameters
    ----------
    mu1, mu2 : array, shape (d,)
    sigma1, sigma2 : array, shape (d, d), symmetric

    Raises
    ------
    ValueError
        If shapes disagree.
    """
    mu1, mu2 = np.asarray(mu1, np.float64).reshape(-1), np.asarray(mu2, np.float64).reshape(-1)
    sigma1, sigma2 = np.asarray(sigma1, np.float64), np.asarray(sigma2, np.float64)
    shape = (mu1.size, mu1.size)
    if mu2.size != mu1.size or sigma1.shape != shape or sigma2.shape != shape:
        raise ValueError(
            f"moments must agree in dimension, got means of {mu1.size} and {mu2.size} features and "
            f"covariances of shape {sigma1.shape} and {sigma2.shape}"
        )
    root = _square_root(sigma1)
    inner = root @ sigma2 @ root
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0.0, None)).sum()
    difference = mu1 - mu2
    return float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2.0 * cross)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Fréchet distance of two :class:`Moments`; call it FID only for Inception features."""
    return frechet_from_moments(first.mean, first.covariance, second.mean, second.covariance)


def frechet_bias(covariance: Any, count: int) -> float:
    r"""Fréchet distance a *perfect* generator is expected to score with ``count`` samples (first order in 1/n).

    .. math:: \tfrac1n\Big[\sum_i\lambda_i
              + \tfrac12\sum_{ij}(1+\delta_{ij})\frac{\lambda_i\lambda_j}{\lambda_i+\lambda_j}\Big]

    with the eigenvalues of the data covariance. If the reference is sampled too, add the term with its own n.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    values = np.clip(np.linalg.eigvalsh(np.asarray(covariance, np.float64)), 0.0, None)
    values = values[values > values.max(initial=0.0) * 1e-15]
    pairs = np.outer(values, values) / (values[:, None] + values[None, :])
    return float((values.sum() + 0.5 * (pairs.sum() + np.trace(pairs))) / count)


def frechet_infinity(features: Any, reference: Moments, *, points: int = 15, seed: int = 0) -> Estimate:
    """Fréchet distance extrapolated to infinitely many samples (Chong & Forsyth 2020, section 4).

    The distance is taken at ``points`` subset sizes between a tenth and all of the samples, each a random subset
    without replacement, and regressed on 1/n; the intercept and its standard error are returned.
    """
    rows = as_rows(features)
    smallest = max(len(rows) // 10, reference.dimension + 1, 2)
    if smallest >= len(rows):
        raise ValueError(f"{len(rows)} samples are too few to extrapolate with {reference.dimension} features")
    sizes = np.unique(np.linspace(smallest, len(rows), points).astype(int))
    if len(sizes) < 3:
        raise ValueError(f"{len(rows)} samples leave only {len(sizes)} subset sizes: at least 3 are needed")
    rng = np.random.default_rng(seed)
    values = [frechet_distance(Moments.of(rows[rng.permutation(len(rows))[:n]]), reference) for n in sizes]
    design = np.stack([np.ones(len(sizes)), 1.0 / sizes], axis=1)
    solution, *_ = np.linalg.lstsq(design, np.array(values), rcond=None)
    residual = np.array(values) - design @ solution
    variance = residual @ residual / (len(sizes) - 2) * np.linalg.inv(design.T @ design)[0, 0]
    return Estimate(float(solution[0]), float(np.sqrt(variance)))


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # torch, because its threads can be limited; numpy's own pool fights with other processes for the cores
    base = torch.from_numpy(x) @ (torch.from_numpy(y).T / x.shape[1]) + 1.0
    return (base * base * base).numpy()


def _unbiased_mmd(kxx: np.ndarray, kyy: np.ndarray, kxy: np.ndarray) -> float:
    m, n = len(kxx), len(kyy)
    within = (kxx.sum() - np.trace(kxx)) / (m * (m - 1)) + (kyy.sum() - np.trace(kyy)) / (n * (n - 1))
    return float(within - 2.0 * kxy.mean())


def kernel_distance(
    features: Any, reference: Any, *, blocks: int = 100, block_size: int = 1000, seed: int = 0
) -> Estimate:
    """Unbiased squared MMD with k(x, y) = (<x, y>/d + 1)^3 over random blocks (KID, Bińkowski et al. 2018).

    Each block draws ``block_size`` rows without replacement from both sides (all rows where there are fewer).
    The value may be negative. The spread is that of the blocks.

    Raises
    ------
    ValueError
        With fewer than 2 rows on a side or unequal feature counts.
    """
    x, y = _pair(features, reference)
    m, n = min(block_size, len(x)), min(block_size, len(y))
    if (m, n) == (len(x), len(y)):
        blocks = 1  # every block would hold the same rows
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(blocks):
        a = x[rng.permutation(len(x))[:m]]
        b = y[rng.permutation(len(y))[:n]]
        values.append(_unbiased_mmd(_cubic(a, a), _cubic(b, b), _cubic(a, b)))
    return Estimate(float(np.mean(values)), float(np.std(values)))


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    square = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2.0 * (x @ y.T)
    return np.maximum(square, 0.0)


def rbf_distance(features: Any, reference: Any, bandwidths: Sequence[float]) -> float:
    """Unbiased squared MMD with a sum of Gaussian kernels exp(-|x-y|^2 / 2h^2), h fixed beforehand."""
    x, y = _pair(features, reference)
    squares = [_squared_distances(a, b) for a, b in ((x, x), (y, y), (x, y))]
    return float(sum(_unbiased_mmd(*(np.exp(-s / (2.0 * h * h)) for s in squares)) for h in bandwidths))


def sliced_wasserstein(features: Any, reference: Any, *, directions: int = 256, seed: int = 0) -> float:
    """Mean over fixed random unit directions of the squared 1-D 2-Wasserstein distance (Bonneel et al. 2015).

    Directions depend on ``seed`` and the feature count alone, so numbers of different samplers share them.
    Unequal sample counts are matched through their quantile functions.
    """
    x, y = _pair(features, reference)
    rng = np.random.default_rng(seed)
    lines = rng.standard_normal((x.shape[1], directions))
    lines /= np.linalg.norm(lines, axis=0, keepdims=True)
    return float(np.mean(wasserstein_1d(x @ lines, y @ lines)))


def wasserstein_1d(x: Any, y: Any) -> np.ndarray:
    """Squared 2-Wasserstein distance per column of two samples of shape (n, k) and (m, k), exact for any n, m."""
    a, b = np.sort(np.asarray(x, np.float64), axis=0), np.sort(np.asarray(y, np.float64), axis=0)
    n, m = len(a), len(b)
    if n == m:
        return ((a - b) ** 2).mean(axis=0)
    # Both quantile functions are steps: integrate over the union of their jumps, in exact integer arithmetic.
    jumps = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    widths = np.diff(jumps, prepend=0) / (n * m)
    i, j = (jumps - 1) // m, (jumps - 1) // n
    return (widths[:, None] * (a[i] - b[j]) ** 2).sum(axis=0)


def _pair(features: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = as_rows(features), as_rows(reference)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both sides need equal features, got {x.shape[1]} and {y.shape[1]} columns")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"at least 2 samples are needed on each side, got {len(x)} and {len(y)}")
    return x, y
