"""Paths that start from pure noise with finite rates: linear, cosine, polynomial.

Sources: Liu et al., "Flow straight and fast" (linear); Albergo and Vanden-Eijnden, "Building normalizing
flows with stochastic interpolants" (cosine, also called GVP or trigonometric).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .errors import check_positive
from .path import GaussianPath

_LOG_100 = math.log(100.0)
_HALF_PI = math.pi / 2


class PureNoisePath(GaussianPath):
    """A path with signal(0) = 0 and noise(1) = 0; default grids run over |lam| <= log 100."""

    @property
    def lambda_min(self) -> float:
        """Signal-to-noise ratio 1/100."""
        return -_LOG_100

    @property
    def lambda_max(self) -> float:
        """Signal-to-noise ratio 100."""
        return _LOG_100


@dataclass(frozen=True)
class LinearPath(PureNoisePath):
    """signal = t, noise = 1 - t: rectified flow, conditional optimal transport. Wronskian 1."""

    name: ClassVar[str] = "linear"
    constant_rates: ClassVar[bool] = True

    def _signal(self, t: Tensor) -> Tensor:
        return t.clone()

    def _noise(self, t: Tensor) -> Tensor:
        return 1 - t

    def _signal_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _noise_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def _lam(self, t: Tensor) -> Tensor:
        return t.log() - torch.log1p(-t)

    def _time_at(self, lam: Tensor) -> Tensor:
        return lam.sigmoid()


@dataclass(frozen=True)
class CosinePath(PureNoisePath):
    """signal = sin(pi t / 2), noise = cos(pi t / 2): variance preserving, finite rates, Wronskian pi / 2."""

    name: ClassVar[str] = "cosine"

    def _signal(self, t: Tensor) -> Tensor:
        return (_HALF_PI * t).sin()

    def _noise(self, t: Tensor) -> Tensor:
        return (_HALF_PI * (1 - t)).sin()  # the sine is exactly 0 at t = 1, the cosine is not

    def _signal_rate(self, t: Tensor) -> Tensor:
        return _HALF_PI * self._noise(t)

    def _noise_rate(self, t: Tensor) -> Tensor:
        return -_HALF_PI * self._signal(t)

    def _time_at(self, lam: Tensor) -> Tensor:
        return lam.exp().atan() / _HALF_PI


@dataclass(frozen=True)
class PolynomialPath(PureNoisePath):
    """signal = t^n, noise = 1 - t^n. Wronskian n t^(n - 1); rates are infinite at t = 0 only for n < 1."""

    power: float = 2.0

    name: ClassVar[str] = "polynomial"

    def __post_init__(self) -> None:
        check_positive("power", self.power)

    def _signal(self, t: Tensor) -> Tensor:
        return t.pow(self.power)

    def _noise(self, t: Tensor) -> Tensor:
        return 0.0 - torch.expm1(self.power * t.log())  # 0 - 0 at t = 1, never -0

    def _signal_rate(self, t: Tensor) -> Tensor:
        return self.power * t.pow(self.power - 1)

    def _noise_rate(self, t: Tensor) -> Tensor:
        return -self._signal_rate(t)

    def _lam(self, t: Tensor) -> Tensor:
        return self.power * t.log() - self._noise(t).log()

    def _time_at(self, lam: Tensor) -> Tensor:
        return (-torch.logaddexp(torch.zeros_like(lam), -lam) / self.power).exp()
