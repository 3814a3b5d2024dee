"""Paths with signal 1 and growing noise.

Sources: Song et al., "Score-based generative modeling through stochastic differential equations" (VE);
Karras et al., "Elucidating the design space of diffusion-based generative models" eq. 5 (EDM).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .errors import check_name, check_ordered, check_positive
from .path import PREDICTIONS, GaussianPath


class ExplodingPath(GaussianPath):
    """A path with signal = 1; grids in lam run between -log sigma_max and -log sigma_min."""

    sigma_min: float
    sigma_max: float

    def _signal(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _signal_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _check_range(self) -> None:
        check_positive("sigma_min", self.sigma_min)
        check_ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def lambda_min(self) -> float:
        """-log sigma_max, the noise at t = 0."""
        return -math.log(self.sigma_max)

    @property
    def lambda_max(self) -> float:
        """-log sigma_min."""
        return -math.log(self.sigma_min)


@dataclass(frozen=True)
class VEPath(ExplodingPath):
    """noise = sigma_min (sigma_max / sigma_min)^(1 - t); it ends at sigma_min, not at 0."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    name: ClassVar[str] = "ve"

    def __post_init__(self) -> None:
        self._check_range()

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _noise(self, t: Tensor) -> Tensor:
        return (-self._lam(t)).exp()

    def _noise_rate(self, t: Tensor) -> Tensor:
        return -self._log_ratio * self._noise(t)

    def _lam(self, t: Tensor) -> Tensor:
        return -math.log(self.sigma_min) - (1 - t) * self._log_ratio

    def _time_at(self, lam: Tensor) -> Tensor:
        return (lam + math.log(self.sigma_max)) / self._log_ratio


@dataclass(frozen=True)
class EDMPath(ExplodingPath):
    """noise = sigma_max (1 - t)^rho, exactly 0 at t = 1.

    `sigma_min` does not enter the path; it ends the default range of grids and of training.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    name: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        self._check_range()
        check_positive("rho", self.rho)

    def _noise(self, t: Tensor) -> Tensor:
        return self.sigma_max * (1 - t).pow(self.rho)

    def _noise_rate(self, t: Tensor) -> Tensor:
        return -self.sigma_max * self.rho * (1 - t).pow(self.rho - 1)

    def _lam(self, t: Tensor) -> Tensor:
        return -math.log(self.sigma_max) - self.rho * torch.log1p(-t)

    def _time_at(self, lam: Tensor) -> Tensor:
        return -torch.expm1(-(lam + math.log(self.sigma_max)) / self.rho)

    def train_interval(self, prediction: str) -> tuple[float, float]:
        """From sigma_max at t = 0 to the time at which the noise is sigma_min."""
        check_name("prediction", prediction, PREDICTIONS)
        return 0.0, self.time_at(self.lambda_max).item()
