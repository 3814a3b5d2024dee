"""Variance-preserving paths (signal^2 + noise^2 = 1) and the sub-VP path.

Sources: Song et al., "Score-based generative modeling through stochastic differential equations" (VP,
sub-VP); Nichol and Dhariwal, "Improved denoising diffusion" eq. 17 (cosine); Chen, "On the importance of
noise scheduling" (sigmoid). tau = 1 - t is the diffusion time of those papers.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .errors import check_ordered, check_positive
from .path import GaussianPath

_HALF_PI = math.pi / 2
_DEFAULT_LAMBDA = 5.0
_VP_LAST_TIME = 0.999
_LARGEST_SPREAD = 80.0


def log1p_exp(value: Tensor) -> Tensor:
    """log(1 + e^value) to full accuracy (torch's softplus drops the correction above its threshold)."""
    return torch.logaddexp(torch.zeros_like(value), value)


class PreservingPath(GaussianPath):
    """A path with signal^2 + noise^2 = 1; everything follows from signal and from signal * signal_rate."""

    @abstractmethod
    def _signal_signal_rate(self, t: Tensor) -> Tensor: ...

    def _signal_rate(self, t: Tensor) -> Tensor:
        return self._signal_signal_rate(t) / self._signal(t)

    def _noise_rate(self, t: Tensor) -> Tensor:
        return -self._signal_signal_rate(t) / self._noise(t)

    def _noise_noise_rate(self, t: Tensor) -> Tensor:
        return -self._signal_signal_rate(t)

    @property
    def lambda_min(self) -> float:
        """The larger of -5 and lam(0)."""
        return max(-_DEFAULT_LAMBDA, self._lam_ends[0])

    @property
    def lambda_max(self) -> float:
        """The smaller of 5 and lam(1)."""
        return min(_DEFAULT_LAMBDA, self._lam_ends[1])


@dataclass(frozen=True)
class _LinearBeta:
    """The linear noise rate beta(tau) = beta_min + (beta_max - beta_min) tau and its integral B."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_positive("beta_min", self.beta_min)
        check_ordered("beta_min", self.beta_min, "beta_max", self.beta_max)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * (1 - t)

    def _beta_integral(self, t: Tensor) -> Tensor:
        tau = 1 - t
        return tau * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * tau)

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 1 - 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())


@dataclass(frozen=True)
class VPPath(_LinearBeta, PreservingPath):
    """signal = exp(-B / 2), noise = sqrt(1 - exp(-B)) for a linear beta; noise_rate(1) = -infinity."""

    name: ClassVar[str] = "vp"

    def _signal(self, t: Tensor) -> Tensor:
        return (-0.5 * self._beta_integral(t)).exp()

    def _noise(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._beta_integral(t))).sqrt()

    def _signal_rate(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) * self._signal(t)

    def _signal_signal_rate(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) * (-self._beta_integral(t)).exp()

    def _lam(self, t: Tensor) -> Tensor:
        integral = self._beta_integral(t)
        return -0.5 * (integral + (-torch.expm1(-integral)).log())  # = -log(expm1(B)) / 2 without overflow

    def _time_at(self, lam: Tensor) -> Tensor:
        return self._time_of_integral(log1p_exp(-2 * lam))

    @property
    def lambda_min(self) -> float:
        """lam(0), finite on this path."""
        return self._lam_ends[0]

    @property
    def lambda_max(self) -> float:
        """lam(0.999), the customary last time of samplers on this path."""
        return self.lam(_VP_LAST_TIME).item()


@dataclass(frozen=True)
class SubVPPath(_LinearBeta, GaussianPath):
    """signal = exp(-B / 2), noise = 1 - exp(-B) with a linear beta; all rates are finite."""

    name: ClassVar[str] = "sub-vp"

    def _signal(self, t: Tensor) -> Tensor:
        return (-0.5 * self._beta_integral(t)).exp()

    def _noise(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._beta_integral(t))

    def _signal_rate(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) * self._signal(t)

    def _noise_rate(self, t: Tensor) -> Tensor:
        return -self._beta(t) * (-self._beta_integral(t)).exp()

    def _lam(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta_integral(t) - self._noise(t).log()

    def _time_at(self, lam: Tensor) -> Tensor:
        # signal / (1 - signal^2) = e^lam is 2 sinh(B / 2) = e^-lam.
        return self._time_of_integral(2 * torch.asinh(0.5 * (-lam).exp()))

    @property
    def lambda_min(self) -> float:
        """The larger of -5 and lam(0)."""
        return max(-_DEFAULT_LAMBDA, self._lam_ends[0])

    @property
    def lambda_max(self) -> float:
        """5."""
        return _DEFAULT_LAMBDA


@dataclass(frozen=True)
class CosineVPPath(PreservingPath):
    """signal = cos(theta(tau)) / cos(theta(0)), theta = (tau + offset) / (1 + offset) * pi / 2.

    With phase = pi / 2 / (1 + offset) this is sin(phase t) / sin(phase), and noise^2 is
    sin(phase tau) sin(phase (tau + 2 offset)) / sin(phase)^2, which are exact at both ends.
    """

    offset: float = 0.008

    name: ClassVar[str] = "cosine-vp"

    def __post_init__(self) -> None:
        check_positive("offset", self.offset)

    @property
    def _phase(self) -> float:
        return _HALF_PI / (1 + self.offset)

    def _signal(self, t: Tensor) -> Tensor:
        return (self._phase * t).sin() / math.sin(self._phase)

    def _noise(self, t: Tensor) -> Tensor:
        tau = 1 - t
        product = (self._phase * tau).sin() * (self._phase * (tau + 2 * self.offset)).sin()
        return product.sqrt() / math.sin(self._phase)

    def _signal_rate(self, t: Tensor) -> Tensor:
        return self._phase * (self._phase * t).cos() / math.sin(self._phase)

    def _signal_signal_rate(self, t: Tensor) -> Tensor:
        return self._signal(t) * self._signal_rate(t)

    def _time_at(self, lam: Tensor) -> Tensor:
        height = math.sin(self._phase)
        noise_sq = (-2 * lam).sigmoid()
        cosine = (-0.5 * log1p_exp(-2 * lam)).exp() * height
        sine = (math.sin(self._phase * self.offset) ** 2 + height**2 * noise_sq).sqrt()
        return 1 - (torch.atan2(sine, cosine) / self._phase - self.offset)


@dataclass(frozen=True)
class SigmoidVPPath(PreservingPath):
    """signal^2 falls from 1 to 0 along a sigmoid of (start + tau (end - start)) / temperature.

    Differences of sigmoids are written with sinh and cosh, which keeps full accuracy at both ends.
    signal_rate is infinite at t = 0 and noise_rate is -infinity at t = 1.
    """

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0

    name: ClassVar[str] = "sigmoid-vp"

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_ordered("start", self.start, "end", self.end)
        if self._spread > _LARGEST_SPREAD:
            raise ValueError(f"(end - start) / temperature must be at most {_LARGEST_SPREAD:g}, got {self._spread:g}")

    @property
    def _spread(self) -> float:
        return (self.end - self.start) / self.temperature

    @property
    def _scales(self) -> tuple[float, float, float]:
        half = 0.5 * self._spread
        low = math.cosh(0.5 * self.start / self.temperature)
        high = math.cosh(0.5 * self.end / self.temperature)
        return half, low, high

    def _middle(self, t: Tensor) -> Tensor:
        return (0.5 * (self.start / self.temperature + (1 - t) * self._spread)).cosh()

    def _signal(self, t: Tensor) -> Tensor:
        half, low, _ = self._scales
        return ((half * t).sinh() * (low / math.sinh(half)) / self._middle(t)).sqrt()

    def _noise(self, t: Tensor) -> Tensor:
        half, _, high = self._scales
        return ((half * (1 - t)).sinh() * (high / math.sinh(half)) / self._middle(t)).sqrt()

    def _signal_signal_rate(self, t: Tensor) -> Tensor:
        half, low, high = self._scales
        return 0.5 * half * low * high / (math.sinh(half) * self._middle(t).square())

    def _time_at(self, lam: Tensor) -> Tensor:
        half, low, high = self._scales
        ratio = 2 * lam + math.log(high / low)  # log(sinh(half t) / sinh(half tau))
        size = -ratio.abs()  # t at a negative ratio is tau at the positive one
        short = (log1p_exp(size + half) - log1p_exp(size - half)) / (2 * half)
        return torch.where(ratio < 0, short, 1 - short)


@dataclass(frozen=True)
class LinearVPPath(PreservingPath):
    """signal = t, noise = sqrt(1 - t^2); noise_rate is -infinity at t = 1."""

    name: ClassVar[str] = "linear-vp"

    def _signal(self, t: Tensor) -> Tensor:
        return t.clone()

    def _noise(self, t: Tensor) -> Tensor:
        return ((1 - t) * (1 + t)).sqrt()

    def _signal_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _signal_signal_rate(self, t: Tensor) -> Tensor:
        return t.clone()

    def _time_at(self, lam: Tensor) -> Tensor:
        return (-0.5 * log1p_exp(-2 * lam)).exp()

    @property
    def lambda_min(self) -> float:
        """Signal-to-noise ratio 1/100."""
        return -math.log(100.0)

    @property
    def lambda_max(self) -> float:
        """Signal-to-noise ratio 100."""
        return math.log(100.0)
