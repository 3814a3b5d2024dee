"""What networks of bridges predict, each as one linear relation between output, data, source and state.

A bridge is x_t = anchor source + signal data + noise z. Published networks predict quite different things; with the
relation

    scale * output = on_data * data + on_source * source + on_state * x

a prediction gives both what it is regressed onto (with the data of the sample) and the data prediction that the
samplers of bridges take (with the output of the network).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .configurable import Configurable


class BridgeCoefficients(NamedTuple):
    """Coefficients of source, data and latent noise at some times; tensors of one shape."""

    anchor: Tensor
    signal: Tensor
    noise: Tensor


class Relation(NamedTuple):
    """scale * output = on_data * data + on_source * source + on_state * x; entries as those of the coefficients."""

    scale: Tensor
    on_data: Tensor
    on_source: Tensor
    on_state: Tensor


class BridgePrediction(Configurable):
    """What the network of a bridge predicts."""

    kind: ClassVar[str] = "bridge prediction"

    @abstractmethod
    def relation(self, at: BridgeCoefficients) -> Relation:
        """The relation that defines the output."""

    def target(self, at: BridgeCoefficients, x: Tensor, source: Tensor, data: Tensor, latent: Tensor) -> Tensor:
        """What the output is regressed onto; coefficients broadcast against the tensors of shape (B, ...)."""
        scale, on_data, on_source, on_state = self.relation(at)
        return (on_data * data + on_source * source + on_state * x) / scale

    def data(self, at: BridgeCoefficients, x: Tensor, source: Tensor, output: Tensor) -> Tensor:
        """The data prediction that an output stands for."""
        scale, on_data, on_source, on_state = self.relation(at)
        return (scale * output - on_source * source - on_state * x) / on_data

    def input_scale(self, at: BridgeCoefficients) -> Tensor:
        """Factor of the state on its way into the network."""
        return torch.ones_like(at.noise)


@dataclass(frozen=True)
class DataPrediction(BridgePrediction):
    """The data itself (ResShift); `scale_input` divides the network's input by sqrt(1 + noise^2), as ResShift does."""

    scale_input: bool = False

    name: ClassVar[str] = "data"

    def relation(self, at: BridgeCoefficients) -> Relation:
        """Output = data."""
        one, zero = torch.ones_like(at.noise), torch.zeros_like(at.noise)
        return Relation(one, one, zero, zero)

    def input_scale(self, at: BridgeCoefficients) -> Tensor:
        """1 / sqrt(1 + noise^2), the spread of the state of unit-variance data; or one."""
        return (1 + at.noise.square()).rsqrt() if self.scale_input else torch.ones_like(at.noise)


@dataclass(frozen=True)
class LatentPrediction(BridgePrediction):
    """The latent noise z (objective "noise" of BBDM)."""

    name: ClassVar[str] = "latent"

    def relation(self, at: BridgeCoefficients) -> Relation:
        """Noise * output = x - anchor source - signal data."""
        return Relation(at.noise, -at.signal, -at.anchor, torch.ones_like(at.noise))

    def target(self, at: BridgeCoefficients, x: Tensor, source: Tensor, data: Tensor, latent: Tensor) -> Tensor:
        """The latent noise, without the cancellation of the relation."""
        return latent


@dataclass(frozen=True)
class ScorePrediction(BridgePrediction):
    """The score of x_t given the source, -z / noise in expectation (what DDBM's samplers use)."""

    name: ClassVar[str] = "score"

    def relation(self, at: BridgeCoefficients) -> Relation:
        """Noise^2 * output = anchor source + signal data - x."""
        return Relation(at.noise.square(), at.signal, at.anchor, -torch.ones_like(at.noise))

    def target(self, at: BridgeCoefficients, x: Tensor, source: Tensor, data: Tensor, latent: Tensor) -> Tensor:
        """-latent / noise."""
        return -latent / at.noise


@dataclass(frozen=True)
class Displacement(BridgePrediction):
    """State less data (BBDM's objective "grad", the default there; consecutive Brownian bridge)."""

    name: ClassVar[str] = "displacement"

    def relation(self, at: BridgeCoefficients) -> Relation:
        """Output = x - data."""
        one = torch.ones_like(at.noise)
        return Relation(one, -one, torch.zeros_like(one), one)


@dataclass(frozen=True)
class ScaledDisplacement(BridgePrediction):
    """(x - data) / std, with std = noise / sqrt(signal) that of the Brownian motion that set out at the data (I2SB)."""

    name: ClassVar[str] = "scaled_displacement"

    def relation(self, at: BridgeCoefficients) -> Relation:
        """Std * output = x - data."""
        one = torch.ones_like(at.noise)
        return Relation(at.noise / at.signal.sqrt(), -one, torch.zeros_like(one), one)


@dataclass(frozen=True)
class Difference(BridgePrediction):
    """Source less data (BBDM's objective "ysubx")."""

    name: ClassVar[str] = "difference"

    def relation(self, at: BridgeCoefficients) -> Relation:
        """Output = source - data."""
        one = torch.ones_like(at.noise)
        return Relation(one, -one, one, torch.zeros_like(one))


@dataclass(frozen=True)
class Drift(BridgePrediction):
    """(data - x) / anchor: the drift of a Brownian bridge in its clock 1 - anchor (bridge matching).

    E[drift | x] drives the Markov process with the marginals of the bridges, dX = drift dt + sqrt(diffusivity) dW (Shi
    et al. 2023, "Diffusion Schrödinger bridge matching").
    """

    name: ClassVar[str] = "drift"

    def relation(self, at: BridgeCoefficients) -> Relation:
        """Anchor * output = data - x."""
        one = torch.ones_like(at.noise)
        return Relation(at.anchor, one, torch.zeros_like(one), -one)


@dataclass(frozen=True)
class BridgePreconditioned(BridgePrediction):
    """DDBM's residual F in data = skip x + out F(in x), of unit variance for ends of the given spreads.

    With spread^2 = anchor^2 sigma_source^2 + signal^2 sigma_data^2 + 2 anchor signal covariance + noise^2: in = 1 /
    spread, skip = (signal sigma_data^2 + anchor covariance) / spread^2 and out = sqrt(anchor^2 (sigma_source^2
    sigma_data^2 - covariance^2) + sigma_data^2 noise^2) / spread. The squared error of F is that of the data over
    out^2, the weight of the paper. Zhou et al. 2024, "Denoising diffusion bridge models"; its network is
    given 250 log(1 - t) as its label.

    Parameters
    ----------
    sigma_data, sigma_source : float
        Standard deviations of both ends.
    covariance : float
        Of both, per entry; smaller in size than their product.
    """

    sigma_data: float = 0.5
    sigma_source: float = 0.5
    covariance: float = 0.0

    name: ClassVar[str] = "preconditioned"

    def __post_init__(self) -> None:
        for key in ("sigma_data", "sigma_source"):
            _check_above_zero(key, getattr(self, key))
        if not abs(self.covariance) < self.sigma_data * self.sigma_source:
            raise ValueError(
                f"covariance of bridge prediction 'preconditioned' must be smaller in size than sigma_data * "
                f"sigma_source = {self.sigma_data * self.sigma_source:g}, got {self.covariance!r}"
            )

    def _power(self, at: BridgeCoefficients) -> Tensor:
        anchored = at.anchor.square() * self.sigma_source**2 + 2 * at.anchor * at.signal * self.covariance
        return anchored + at.signal.square() * self.sigma_data**2 + at.noise.square()

    def relation(self, at: BridgeCoefficients) -> Relation:
        """Out * output = data - skip x."""
        power = self._power(at)
        skip = (at.signal * self.sigma_data**2 + at.anchor * self.covariance) / power
        rest = (self.sigma_source * self.sigma_data) ** 2 - self.covariance**2
        out = (at.anchor.square() * rest + (self.sigma_data * at.noise).square()).sqrt() / power.sqrt()
        return Relation(out, torch.ones_like(out), torch.zeros_like(out), -skip)

    def input_scale(self, at: BridgeCoefficients) -> Tensor:
        """One over the spread."""
        return self._power(at).rsqrt()


def _check_above_zero(name: str, value: Any) -> None:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{name} of a bridge prediction must be a finite number above 0, got {value!r}")
