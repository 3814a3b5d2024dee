"""Precision, recall, density and coverage from nearest-neighbour balls, in blocks of bounded memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from .moments import as_rows


class Manifold(NamedTuple):
    """Fidelity and variety of samples against real data; all but density lie in [0, 1]."""

    precision: float
    recall: float
    density: float
    coverage: float


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances; without the matrix-product shortcut, so that equal rows give exactly 0."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(torch.from_numpy(x), torch.from_numpy(y), compute_mode=mode).numpy()


def _block(columns: int, budget: int = 1 << 24) -> int:
    return max(1, budget // max(1, columns))


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """Distance from each row to its k-th neighbour among the other rows."""
    if not 0 < k < len(x):
        raise ValueError(f"k must lie in 1...{len(x) - 1} for {len(x)} samples, got {k}")
    out = np.empty(len(x))
    step = _block(len(x))
    for start in range(0, len(x), step):
        block = _distances(x[start : start + step], x)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
        out[start : start + step] = np.partition(block, k - 1, axis=1)[:, k - 1]
    return out


def precision_recall(features: Any, reference: Any, *, k: int = 3, k_density: int = 5) -> Manifold:
    """Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Precision and recall use balls of the k-th neighbour with <=, density and coverage those of the
    ``k_density``-th with <. Values depend on the number of samples: compare equal counts only. O(n^2 d).

    Raises
    ------
    ValueError
        If a side has no more than k samples or feature counts differ.
    """
    fake, real = as_rows(features), as_rows(reference)
    if fake.shape[1] != real.shape[1]:
        raise ValueError(f"both sides need equal features, got {fake.shape[1]} and {real.shape[1]} columns")
    real_k, fake_k, real_d = radii(real, k), radii(fake, k), radii(real, k_density)
    inside = np.zeros(len(fake), bool)
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    count = 0
    step = _block(len(real))
    for start in range(0, len(fake), step):
        block = _distances(fake[start : start + step], real)
        inside[start : start + step] = (block <= real_k).any(axis=1)
        recalled |= (block <= fake_k[start : start + step, None]).any(axis=0)
        hits = block < real_d
        covered |= hits.any(axis=0)
        count += int(hits.sum())
    return Manifold(
        float(inside.mean()), float(recalled.mean()), count / (k_density * len(fake)), float(covered.mean())
    )
