"""Entropic plans between Gaussians in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import check_positive
from ..gaussian import Gaussian, GaussianCoupling


def gaussian_plan(base: Gaussian, data: Gaussian, regularisation: float) -> GaussianCoupling:
    """The plan of least E|x_0 − x_1|² + regularisation·KL between two Gaussians, itself Gaussian.

    With σ² = regularisation/2 its cross-covariance is ½·(Σ_0^½·(4·Σ_0^½·Σ_1·Σ_0^½ + σ⁴)^½·Σ_0^−½ − σ²). Janati,
    Muzellec, Peyré and Cuturi, "Entropic optimal transport between unbalanced Gaussian measures has a closed form",
    2020 (arXiv:2006.02572). With Brownian bridges of variance σ² it is the Schrödinger bridge.

    Raises
    ------
    ValueError
        A regularisation that is not positive, or a base without a density.
    """
    variance = 0.5 * check_positive("regularisation", regularisation)
    values, vectors = torch.linalg.eigh(base.covariance)
    if float(values.min()) <= 0.0:
        raise ValueError("base must have a covariance of full rank")
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors / values.sqrt()) @ vectors.T
    eye = torch.eye(base.dimension, dtype=torch.float64)
    middle = _root(4.0 * root @ data.covariance @ root + variance**2 * eye)
    return GaussianCoupling(base, data, 0.5 * (root @ middle @ inverse - variance * eye))


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
