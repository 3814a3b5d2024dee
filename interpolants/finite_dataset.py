"""A finite data set as a law: point masses on its rows."""

import math
from typing import Any

import torch
from torch import Tensor

from .components import ComponentTarget, squared_distances


class FiniteDataset(ComponentTarget):
    """Data drawn from a list of points; its denoiser is the exact optimum for training on them.

    Parameters
    ----------
    points : array, shape (K, ...)
    labels : array of int, shape (K,), optional
        Class of each point.
    weights : array, shape (K,), optional
        Equal when left out.

    Notes
    -----
    At noise 0 the data prediction is the nearest point. The score, and with it noise, v and velocity, exist only
    at noise above 0.
    """

    def __init__(self, points: Any, labels: Any = None, weights: Any = None) -> None:
        count = len(points)
        super().__init__(torch.ones(count) if weights is None else weights, points, labels)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the points, shape (d, d)."""
        return self._between_covariance()

    def _moments(self, x: Tensor, signal: Tensor, noise: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
        centres = self._parameter("_centres", x)
        variance = noise.square().clamp(min=torch.finfo(x.dtype).tiny)
        log_prior = self._log_prior(x, labels)
        distances = squared_distances(x, centres, signal)
        # Counted from the nearest point of the class, so that noise 0 gives that point and not 0/0.
        nearest = distances.masked_fill(log_prior == -math.inf, math.inf).amin(1, keepdim=True)
        share = (log_prior - (distances - nearest).clamp(min=0) / (2 * variance)).softmax(1)
        data = share @ centres
        return data, (x - signal * data) / variance

    def _log_density(self, x: Tensor, signal: Tensor, noise: Tensor, labels: Any) -> Tensor:
        if bool((noise <= 0).any()):
            raise ValueError("a finite data set has a density only at noise above 0")
        distances = squared_distances(x, self._parameter("_centres", x), signal)
        terms = self._log_prior(x, labels) - distances / (2 * noise.square())
        return terms.logsumexp(1) - self.dimension * (noise.log()[:, 0] + 0.5 * math.log(2 * math.pi))
