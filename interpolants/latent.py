"""Coefficients of the latent noise in a stochastic interpolant: gamma(t), zero at both ends.

Albergo, Boffi and Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows and diffusions",
section 3.3. The product gamma * d gamma/dt is a primitive of its own: it is finite at the ends also where
d gamma/dt is not (Brownian), and it is all that velocities and marginal covariances need.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .errors import check_name, check_positive, unknown_name


class LatentCoefficient(ABC):
    """A coefficient gamma(t) >= 0 with its rate and the product of both; arguments are floating tensors."""

    name: ClassVar[str]

    @abstractmethod
    def value(self, t: Tensor) -> Tensor:
        """Gamma(t)."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """Rate d gamma/dt; infinite where gamma is."""

    def product(self, t: Tensor) -> Tensor:
        """Gamma * d gamma/dt, finite on [0, 1]."""
        return self.value(t) * self.rate(t)

    @property
    @abstractmethod
    def peak(self) -> float:
        """Largest value of gamma, reached at t = 1/2."""


@dataclass(frozen=True)
class ZeroLatent(LatentCoefficient):
    """gamma = 0: no latent noise."""

    name: ClassVar[str] = "zero"

    def value(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    @property
    def peak(self) -> float:
        """0."""
        return 0.0


@dataclass(frozen=True)
class BrownianLatent(LatentCoefficient):
    """gamma = sqrt(diffusivity t (1 - t)): the standard deviation of a Brownian bridge."""

    diffusivity: float = 1.0

    name: ClassVar[str] = "brownian"

    def __post_init__(self) -> None:
        check_positive("diffusivity", self.diffusivity)

    def value(self, t: Tensor) -> Tensor:
        """sqrt(diffusivity t (1 - t))."""
        return (self.diffusivity * t * (1 - t)).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        """Product over value; infinite at both ends."""
        return self.product(t) / self.value(t)

    def product(self, t: Tensor) -> Tensor:
        """Value diffusivity (1 - 2 t) / 2."""
        return 0.5 * self.diffusivity * (1 - 2 * t)

    @property
    def peak(self) -> float:
        """Half the root of the diffusivity."""
        return 0.5 * math.sqrt(self.diffusivity)


@dataclass(frozen=True)
class QuadraticLatent(LatentCoefficient):
    """gamma = t (1 - t)."""

    name: ClassVar[str] = "quadratic"

    def value(self, t: Tensor) -> Tensor:
        """Value t (1 - t)."""
        return t * (1 - t)

    def rate(self, t: Tensor) -> Tensor:
        """1 - 2 t."""
        return 1 - 2 * t

    @property
    def peak(self) -> float:
        """1/4."""
        return 0.25


@dataclass(frozen=True)
class SinSquaredLatent(LatentCoefficient):
    """gamma = sin(pi t)^2."""

    name: ClassVar[str] = "sin_squared"

    def value(self, t: Tensor) -> Tensor:
        """sin(pi t)^2, exactly 0 at both ends."""
        return (math.pi * torch.minimum(t, 1 - t)).sin().square()

    def rate(self, t: Tensor) -> Tensor:
        """Rate pi sin(2 pi t)."""
        return math.pi * (2 * math.pi * t).sin()

    @property
    def peak(self) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class SigmoidLatent(LatentCoefficient):
    """gamma = S(f (t - 1/2) + 1) - S(f (t - 1/2) - 1) less its value at the ends, S the logistic function."""

    steepness: float = 10.0

    name: ClassVar[str] = "sigmoid"

    def __post_init__(self) -> None:
        check_positive("steepness", self.steepness)

    def _bump(self, t: Tensor) -> Tensor:
        place = self.steepness * (torch.minimum(t, 1 - t) - 0.5)  # symmetric, so that both ends are exactly 0
        return (place + 1).sigmoid() - (place - 1).sigmoid()

    def value(self, t: Tensor) -> Tensor:
        """Bump less its value at the ends."""
        return self._bump(t) - self._bump(torch.zeros_like(t))

    def rate(self, t: Tensor) -> Tensor:
        """Rate f (S'(f (t - 1/2) + 1) - S'(f (t - 1/2) - 1))."""
        place = self.steepness * (t - 0.5)
        up, down = (place + 1).sigmoid(), (place - 1).sigmoid()
        return self.steepness * (up * (1 - up) - down * (1 - down))

    @property
    def peak(self) -> float:
        """Value at t = 1/2."""
        return self.value(torch.tensor(0.5, dtype=torch.float64)).item()


_LATENTS: dict[str, type[LatentCoefficient]] = {
    kind.name: kind for kind in (ZeroLatent, BrownianLatent, QuadraticLatent, SinSquaredLatent, SigmoidLatent)
}


def list_latents() -> list[str]:
    """Names of the latent coefficients."""
    return list(_LATENTS)


def latent_by_name(name: str, **parameters: float) -> LatentCoefficient:
    """Make a latent coefficient, for instance ``latent_by_name("brownian", diffusivity=2.0)``.

    Raises
    ------
    ValueError
        If the name or a parameter is not known.
    """
    kind = _LATENTS[check_name("latent coefficient", name, _LATENTS)]
    known = list(getattr(kind, "__dataclass_fields__", {}))
    known = [key for key in known if key != "name"]
    for key in parameters:
        if key not in known:
            raise unknown_name(f"parameter of latent {name!r}", key, known or ["(none)"])
    return kind(**parameters)
