"""Coefficients of the two ends of a stochastic interpolant.

An `EndPair` gives the weight of the base, the weight of the data, and their rates. Families follow Albergo, Boffi
and Vanden-Eijnden, "Stochastic interpolants", section 4.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .latent import LatentCoefficient, ZeroLatent

_HALF_PI = math.pi / 2


class EndPair(ABC):
    """Weights of base and data and their rates; arguments are floating tensors."""

    name: ClassVar[str]

    @abstractmethod
    def base(self, t: Tensor) -> Tensor:
        """Weight of the base, 1 at t = 0 (0 throughout for the mirror)."""

    @abstractmethod
    def data(self, t: Tensor) -> Tensor:
        """Weight of the data, 1 at t = 1."""

    @abstractmethod
    def base_rate(self, t: Tensor) -> Tensor:
        """Rate of `base`."""

    @abstractmethod
    def data_rate(self, t: Tensor) -> Tensor:
        """Rate of `data`."""


@dataclass(frozen=True)
class LinearEnds(EndPair):
    """1 - t and t."""

    name: ClassVar[str] = "linear"

    def base(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def data(self, t: Tensor) -> Tensor:
        """Time t itself."""
        return t.clone()

    def base_rate(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def data_rate(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class TrigonometricEnds(EndPair):
    """cos(pi t / 2) and sin(pi t / 2), both times sqrt(1 - gamma^2).

    Independent ends of unit variance then keep unit variance in between. Needs gamma below 1.
    """

    latent: LatentCoefficient = field(default_factory=ZeroLatent)

    name: ClassVar[str] = "trigonometric"

    def __post_init__(self) -> None:
        if not self.latent.peak < 1.0:
            raise ValueError(
                "the trigonometric interpolant needs a latent coefficient below 1 everywhere, got "
                f"{self.latent!r} with largest value {self.latent.peak:g}; use brownian with a diffusivity "
                "below 4, quadratic, sigmoid, or another family"
            )

    def _scale(self, t: Tensor) -> Tensor:
        return (1 - self.latent.value(t).square()).sqrt()

    def base(self, t: Tensor) -> Tensor:
        """sqrt(1 - gamma^2) cos(pi t / 2)."""
        return self._scale(t) * (_HALF_PI * (1 - t)).sin()

    def data(self, t: Tensor) -> Tensor:
        """sqrt(1 - gamma^2) sin(pi t / 2)."""
        return self._scale(t) * (_HALF_PI * t).sin()

    def _shrink(self, t: Tensor) -> Tensor:
        """Rate of the scale over the scale: -gamma gamma' / (1 - gamma^2)."""
        return -self.latent.product(t) / self._scale(t).square()

    def base_rate(self, t: Tensor) -> Tensor:
        """Rate of `base`; finite also for the Brownian latent."""
        return self._shrink(t) * self.base(t) - _HALF_PI * self.data(t)

    def data_rate(self, t: Tensor) -> Tensor:
        """Rate of `data`; finite also for the Brownian latent."""
        return self._shrink(t) * self.data(t) + _HALF_PI * self.base(t)


def fourier_waves(t: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """sin(k pi t) for k = 1 ... terms, exactly 0 at both ends, and its rate; both (*t.shape, terms)."""
    order = torch.arange(1, terms + 1, dtype=t.dtype, device=t.device)
    sign = torch.where(t > 0.5, -1.0, 1.0)[..., None].to(t) ** (order - 1)  # sin(k pi t) = -(-1)^k sin(k pi (1 - t))
    values = sign * (math.pi * order * torch.minimum(t, 1 - t)[..., None]).sin()
    return values, math.pi * order * (math.pi * order * t[..., None]).cos()


@dataclass(frozen=True)
class FourierEnds(EndPair):
    """1 - t and t, each plus a sum of coefficients times sin(k pi t), k = 1, 2, ...

    The form in which Albergo and Vanden-Eijnden, "Building normalizing flows with stochastic interpolants" (ICLR 2023),
    section 3.2, learn an interpolant; there around the trigonometric one.

    Parameters
    ----------
    base_terms, data_terms : tuple of float
    """

    base_terms: tuple[float, ...] = ()
    data_terms: tuple[float, ...] = ()

    name: ClassVar[str] = "fourier"

    def __post_init__(self) -> None:
        for field_name in ("base_terms", "data_terms"):
            values = tuple(float(value) for value in getattr(self, field_name))
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{field_name} must be finite numbers, got {values}")
            object.__setattr__(self, field_name, values)

    def base(self, t: Tensor) -> Tensor:
        """1 - t and the sum."""
        return 1 - t + _series(t, self.base_terms, 0)

    def data(self, t: Tensor) -> Tensor:
        """Time t and the sum."""
        return t + _series(t, self.data_terms, 0)

    def base_rate(self, t: Tensor) -> Tensor:
        """-1 and the rate of the sum."""
        return _series(t, self.base_terms, 1) - 1

    def data_rate(self, t: Tensor) -> Tensor:
        """1 and the rate of the sum."""
        return _series(t, self.data_terms, 1) + 1


def _series(t: Tensor, terms: tuple[float, ...], which: int) -> Tensor:
    if not terms:
        return torch.zeros_like(t)
    return (fourier_waves(t, len(terms))[which] * torch.tensor(terms, dtype=t.dtype, device=t.device)).sum(-1)


@dataclass(frozen=True)
class EncoderDecoderEnds(EndPair):
    """cos(pi t)^2, for the base up to t = 1/2 and for the data after it; all is latent at t = 1/2."""

    name: ClassVar[str] = "encoder_decoder"

    def base(self, t: Tensor) -> Tensor:
        """cos(pi t)^2 up to 1/2, then 0."""
        return torch.where(t <= 0.5, (math.pi * t).cos().square(), torch.zeros_like(t))

    def data(self, t: Tensor) -> Tensor:
        """0 up to 1/2, then cos(pi t)^2."""
        return torch.where(t > 0.5, (math.pi * t).cos().square(), torch.zeros_like(t))

    def base_rate(self, t: Tensor) -> Tensor:
        """-pi sin(2 pi t) up to 1/2, then 0."""
        return torch.where(t <= 0.5, -math.pi * (2 * math.pi * t).sin(), torch.zeros_like(t))

    def data_rate(self, t: Tensor) -> Tensor:
        """0 up to 1/2, then -pi sin(2 pi t)."""
        return torch.where(t > 0.5, -math.pi * (2 * math.pi * t).sin(), torch.zeros_like(t))


@dataclass(frozen=True)
class MirrorEnds(EndPair):
    """0 and 1: from the data, through noisier data, back to the data."""

    name: ClassVar[str] = "mirror"

    def base(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def data(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def base_rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def data_rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)
