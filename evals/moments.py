"""Streaming mean and covariance of features, in float64, mergeable across shards and stored with metadata."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import read_npz, replacing

LARGEST = 16384
"""Most features whose covariance is accumulated (2 GB)."""


def as_rows(features: Any) -> np.ndarray:
    """Return features as a float64 array of shape (n, d).

    Parameters
    ----------
    features : Tensor or array, shape (n, ...)
        One row per sample; further axes are flattened.

    Raises
    ------
    ValueError
        If there is no sample axis, or if any value is not finite.
    """
    if isinstance(features, torch.Tensor):
        features = features.detach().to("cpu", torch.float64).numpy()
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim < 2:
        raise ValueError(f"features must have shape (n, d), got {rows.shape}")
    rows = rows.reshape(rows.shape[0], -1)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ValueError(
            f"features hold values that are not finite in {int(bad.sum())} of {len(rows)} samples "
            f"(first: sample {int(np.argmax(bad))})"
        )
    return rows


class Moments:
    """Count, mean and centred second moment of a stream of feature vectors.

    Batches are folded in with the pairwise update of Chan, Golub & LeVeque (1983), so that neither a large
    common mean nor the number of batches costs digits, and two halves merged equal one pass.

    Parameters
    ----------
    metadata : mapping, optional
        JSON values that travel with the numbers: feature space, data set, split, resize, versions.
    """

    def __init__(self, metadata: Mapping[str, Any] | None = None) -> None:
        self.count = 0
        self.metadata: dict[str, Any] = dict(metadata or {})
        self._mean: np.ndarray | None = None
        self._scatter: np.ndarray | None = None

    @classmethod
    def of(cls, features: Any, metadata: Mapping[str, Any] | None = None) -> Moments:
        """Moments of one feature array of shape (n, d)."""
        return cls(metadata).update(features)

    @classmethod
    def exact(
        cls, mean: Any, covariance: Any, metadata: Mapping[str, Any] | None = None, count: int = 10**12
    ) -> Moments:
        """Moments of a law known in closed form; ``count`` only says that sampling error is negligible."""
        self = cls(metadata)
        self._mean = np.asarray(mean, dtype=np.float64).reshape(-1).copy()
        self._scatter = np.asarray(covariance, dtype=np.float64) * (count - 1)
        self.count = count
        if self._scatter.shape != (self._mean.size,) * 2:
            raise ValueError(f"covariance must have shape ({self._mean.size},)*2, got {self._scatter.shape}")
        return self

    def update(self, features: Any) -> Moments:
        """Fold in a batch of shape (n, d) and return self."""
        rows = as_rows(features)
        if rows.shape[1] > LARGEST:
            raise ValueError(
                f"{rows.shape[1]} features would need a covariance of {8e-9 * rows.shape[1] ** 2:.0f} GB (at most "
                f"{LARGEST} are taken); use a smaller feature space, such as pca:64"
            )
        if len(rows):
            mean = rows.mean(axis=0)
            centred = rows - mean
            self._fold(len(rows), mean, centred.T @ centred)
        return self

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both streams together; neither operand changes."""
        merged = Moments({**other.metadata, **self.metadata})
        for part in (self, other):
            if part._mean is not None and part._scatter is not None:
                merged._fold(part.count, part._mean, part._scatter)
        return merged

    def _fold(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean.copy(), scatter.copy()
            return
        if mean.shape != self._mean.shape:
            raise ValueError(f"features must have {self._mean.size} columns as before, got {mean.size}")
        total = self.count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._scatter = self._scatter + scatter + np.outer(delta, delta) * (self.count * count / total)
        self.count = total

    @property
    def dimension(self) -> int:
        """Number of features; 0 before the first batch."""
        return 0 if self._mean is None else self._mean.size

    @property
    def mean(self) -> np.ndarray:
        """Mean, shape (d,)."""
        if self._mean is None:
            raise ValueError("moments of no samples were asked for: give at least 2")
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, shape (d, d).

        Raises
        ------
        ValueError
            With fewer than 2 samples.
        """
        if self._scatter is None or self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        if self.count <= self.dimension:
            warnings.warn(
                f"{self.count} samples for {self.dimension} features: the covariance is singular and a "
                "Fréchet distance strongly biased; use more samples or fewer features",
                stacklevel=2,
            )
        sigma = self._scatter / (self.count - 1)
        return (sigma + sigma.T) / 2

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``mu``, ``sigma``, ``count`` and the metadata (JSON text) to an .npz file."""
        arrays: dict[str, Any] = {
            "mu": self.mean,
            "sigma": self.covariance,
            "count": np.array(self.count, dtype=np.int64),
            "metadata": np.array(json.dumps(self.metadata, sort_keys=True)),
        }
        with replacing(path, "wb") as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Moments:
        """Read statistics written by :meth:`save` or by another tool (``mu`` and ``sigma`` are enough).

        Raises
        ------
        ValueError
            If the file is damaged or holds no ``mu``/``sigma``; the message names the file.
        """
        file = Path(path)
        arrays = read_npz(file)
        missing = {"mu", "sigma"} - arrays.keys()
        if missing:
            raise ValueError(f"{file} lacks {sorted(missing)}; it holds {sorted(arrays)}")
        metadata = json.loads(str(arrays["metadata"])) if "metadata" in arrays else {"source": file.name}
        count = int(arrays["count"]) if "count" in arrays else 10**12
        return cls.exact(arrays["mu"], arrays["sigma"], metadata, max(count, 2))
