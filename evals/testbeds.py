"""Test beds: data laws with an exact network, exact statistics and no training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pathline.interpolants.errors import unknown_name
from pathline.interpolants.gaussian import Gaussian
from pathline.interpolants.mixture import GaussianMixture
from pathline.interpolants.targets import Target

from .files import digest


@dataclass(frozen=True)
class Bed:
    """A closed-form data law.

    Attributes
    ----------
    name, summary : str
    target : Target
        Gives model, samples, mean and covariance.
    classes : int
        Number of classes; 0 where the law has none.
    """

    name: str
    summary: str
    target: Target
    classes: int = 0

    @property
    def class_weights(self) -> tuple[float, ...]:
        """Share of each class in the data."""
        assert isinstance(self.target, GaussianMixture)
        assert self.target.classes is not None
        shares = [self.target.weights[self.target.classes == label].sum() for label in range(self.classes)]
        return tuple(float(share) for share in shares)

    @property
    def identity(self) -> str:
        """Hash of the law's first two moments: changes when the bed does."""
        moments = [self.target.mean.numpy(), self.target.covariance.numpy()]
        return digest([[f"{v:.5g}" for v in np.asarray(m).ravel()] for m in moments])


def _gaussian() -> Bed:
    """16 dimensions, standard deviations from 2 down to 0.02 in a rotated basis, mean of length 1."""
    rng = np.random.default_rng(16)
    basis, _ = np.linalg.qr(rng.standard_normal((16, 16)))
    spectrum = np.geomspace(4.0, 4e-4, 16)
    covariance = (basis * spectrum) @ basis.T
    return Bed("gaussian", "one Gaussian in 16 dimensions", Gaussian(basis[:, 0], (covariance + covariance.T) / 2))


def _ring() -> Bed:
    """Eight narrow Gaussians on a circle in the plane; opposite pairs share a class."""
    angles = np.arange(8) * (math.pi / 4)
    means = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    target = GaussianMixture(np.full(8, 1 / 8), means, std=0.12, classes=np.arange(8) % 4)
    return Bed("ring", "eight Gaussians on a circle in the plane", target, classes=4)


def _mixture() -> Bed:
    """Eight isotropic Gaussians of unequal weight and width in 32 dimensions, samples of shape (2, 4, 4)."""
    rng = np.random.default_rng(32)
    weights = rng.dirichlet(np.full(8, 4.0))
    means = rng.standard_normal((8, 2, 4, 4)) * 0.8
    stds = rng.uniform(0.05, 0.4, 8)
    target = GaussianMixture(weights, means, std=stds, classes=np.arange(8) % 4)
    return Bed("mixture", "eight Gaussians in 32 dimensions, four classes", target, classes=4)


def _digits() -> Bed:
    """A mixture fitted to the 1,797 digit images: four clusters per class, 12 principal directions each."""
    try:
        from sklearn.cluster import KMeans
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("bed 'digits' needs scikit-learn: pip install 'pathline[data]'") from error
    bunch = load_digits()
    images = bunch.data / 8.0 - 1.0
    weights, means, bases, spectra, stds, classes = [], [], [], [], [], []
    for label in range(10):
        rows = images[bunch.target == label]
        cluster = KMeans(4, n_init=2, random_state=label).fit_predict(rows)
        for k in range(4):
            members = rows[cluster == k]
            values, vectors = np.linalg.eigh(np.cov(members.T, bias=True))
            rest = max(float(values[:-12].mean()), 1e-3)
            weights.append(len(members) / len(images))
            means.append(members.mean(axis=0).reshape(1, 8, 8))
            bases.append(vectors[:, :-13:-1])
            spectra.append(np.maximum(values[:-13:-1] - rest, 0.0))
            stds.append(math.sqrt(rest))
            classes.append(label)
    target = GaussianMixture(
        weights, np.stack(means), std=stds, basis=np.stack(bases), spectrum=np.stack(spectra), classes=classes
    )
    return Bed("digits", "a mixture fitted to 8 x 8 digit images, ten classes", target, classes=10)


_BEDS: dict[str, Callable[[], Bed]] = {
    "gaussian": _gaussian,
    "ring": _ring,
    "mixture": _mixture,
    "digits": _digits,
}


def list_beds() -> list[str]:
    """Names of the test beds."""
    return list(_BEDS)


def make_bed(name: str) -> Bed:
    """Build a test bed.

    Raises
    ------
    ValueError
        If the name is unknown (the nearest are listed) or a needed package is missing.
    """
    if name not in _BEDS:
        raise unknown_name("test bed", name, _BEDS)
    return _BEDS[name]()


def draw(bed: Bed, count: int, seed: int = 0) -> torch.Tensor:
    """Exact samples of the data law, float64, shape (count, *shape)."""
    return bed.target.sample(count, torch.Generator().manual_seed(seed))
