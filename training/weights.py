"""Loss weights: how much one sample's squared error counts, given where on the path it was taken.

Every regression on a Gaussian path is a weighted squared error of the noise prediction, because the error of
any other prediction is the noise error times a factor that depends on the path alone. A weight is therefore
stated on the noise error and turned, for whatever quantity the loss is measured in, through `error_factor`.
A few published weights are stated on the loss's own quantity instead, and say so. Source of the unification:
Kingma and Gao 2023, "Understanding diffusion objectives as the ELBO with simple data augmentation".
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pathline.interpolants import PREDICTIONS, PathPoint, check_name

from .configurable import Configurable


def error_factor(point: PathPoint, prediction: str) -> Tensor:
    """Squared error of `prediction` per squared error of the noise prediction, of the shape of the point.

    data (s/a)^2, noise 1, velocity (W/a)^2, v ((a^2 + s^2)/a)^2, score 1/s^2, with a the signal, s the noise
    and W the Wronskian; infinite at signal 0 (all but noise and score).

    Raises
    ------
    ValueError
        If the prediction is unknown.
    """
    check_name("prediction", prediction, PREDICTIONS)
    if prediction == "noise":
        return torch.ones_like(point.signal)
    if prediction == "score":
        return point.noise.square().reciprocal()
    size = {
        "data": lambda: point.noise,
        "velocity": lambda: point.wronskian,
        "v": lambda: point.signal.square() + point.noise.square(),
    }[prediction]()
    return (size / point.signal).square()


class LossWeight(Configurable):
    """Weight of a per-sample squared error.

    `needs_level_density` tells that the weight is stated in log-SNR and has to be divided by the density with
    which the training times visit that log-SNR.
    """

    kind: ClassVar[str] = "loss weight"
    needs_level_density: ClassVar[bool] = False

    def __call__(self, point: PathPoint, target: str, level_density: Tensor | None = None) -> Tensor:
        """Weight of |error of `target`|^2 at each entry of `point`.

        Parameters
        ----------
        point : PathPoint
            Path at the sample times, entries of one shape.
        target : str
            In which of the predictions the error is measured.
        level_density : Tensor, optional
            Density p of the log-SNR 2 lam under the training times; required if `needs_level_density`.
        """
        return self._on_noise_error(point, level_density) / error_factor(point, target)

    @abstractmethod
    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor: ...


class _OwnErrorWeight(LossWeight):
    """A weight stated on whatever quantity the loss is measured in."""

    def __call__(self, point: PathPoint, target: str, level_density: Tensor | None = None) -> Tensor:
        check_name("prediction", target, PREDICTIONS)
        return self._on_own_error(point)

    @abstractmethod
    def _on_own_error(self, point: PathPoint) -> Tensor: ...

    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor:
        return self._on_own_error(point)


@dataclass(frozen=True)
class Unweighted(_OwnErrorWeight):
    """One, on the error the loss is measured in."""

    name: ClassVar[str] = "none"

    def _on_own_error(self, point: PathPoint) -> Tensor:
        return torch.ones_like(point.signal)


@dataclass(frozen=True)
class UnitWeight(LossWeight):
    """One on the error of the named prediction, whatever the loss is measured in."""

    on: str = "noise"

    name: ClassVar[str] = "unit"

    def __post_init__(self) -> None:
        check_name("prediction", self.on, PREDICTIONS)

    def __call__(self, point: PathPoint, target: str, level_density: Tensor | None = None) -> Tensor:
        """Weight on the error of `target`; exactly 1 where it is the named one, also at signal 0."""
        if target == self.on:
            return torch.ones_like(point.signal)
        return super().__call__(point, target, level_density)

    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor:
        return error_factor(point, self.on)


@dataclass(frozen=True)
class EDMWeight(LossWeight):
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on the data error, sigma = noise / signal (EDM, table 1)."""

    sigma_data: float = 0.5

    name: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        _check_above_zero("sigma_data", self.sigma_data)

    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor:
        return 1 + (point.noise / (point.signal * self.sigma_data)).square()


@dataclass(frozen=True)
class MinSNR(LossWeight):
    """min(1, gamma / SNR) on the noise error (Hang et al. 2023, "Efficient diffusion training via min-SNR")."""

    gamma: float = 5.0

    name: ClassVar[str] = "min_snr"

    def __post_init__(self) -> None:
        _check_above_zero("gamma", self.gamma)

    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor:
        return (self.gamma * (-2 * point.lam).exp()).clamp(max=1.0)


@dataclass(frozen=True)
class P2(LossWeight):
    """(k + SNR)^-gamma on the noise error (Choi et al. 2022, eq. 8)."""

    k: float = 1.0
    gamma: float = 1.0

    name: ClassVar[str] = "p2"

    def __post_init__(self) -> None:
        _check_above_zero("k", self.k)

    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor:
        return (self.k + (2 * point.lam).exp()).pow(-self.gamma)


@dataclass(frozen=True)
class Debiased(LossWeight):
    """1 / sqrt(SNR) on the noise error, at most `limit` (Yu et al. 2023, "Debias the training")."""

    limit: float = 150.0

    name: ClassVar[str] = "debiased"

    def __post_init__(self) -> None:
        _check_above_zero("limit", self.limit)

    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor:
        return (-point.lam).exp().clamp(max=self.limit)


@dataclass(frozen=True)
class ELBOWeight(LossWeight):
    """The same for every log-SNR, w = 1: the evidence lower bound (Kingma et al. 2021)."""

    name: ClassVar[str] = "elbo"
    needs_level_density: ClassVar[bool] = True

    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor:
        return _required(level_density, self).reciprocal()


@dataclass(frozen=True)
class SigmoidWeight(LossWeight):
    """w = sigmoid(bias - log SNR) whatever the time density (Kingma and Gao 2023; bias 2 is their best)."""

    bias: float = 2.0

    name: ClassVar[str] = "sigmoid"
    needs_level_density: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_finite("bias", self.bias)

    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor:
        return (self.bias - 2 * point.lam).sigmoid() / _required(level_density, self)


@dataclass(frozen=True)
class EDMMonotonic(LossWeight):
    """The effective weight of EDM, held at its largest value below the log-SNR of its peak.

    w = N(log SNR; -2 mean, (2 std)^2) (1 + 1 / (SNR sigma_data^2)) from the peak on, whatever the time density, with
    the parameters of the EDM objective it is made from (Kingma and Gao 2023).
    """

    mean: float = -1.2
    std: float = 1.2
    sigma_data: float = 0.5

    name: ClassVar[str] = "edm_monotonic"
    needs_level_density: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_finite("mean", self.mean)
        _check_above_zero("std", self.std)
        _check_above_zero("sigma_data", self.sigma_data)

    def _log_weight(self, level: Tensor) -> Tensor:
        scaled = (level + 2 * self.mean) / (2 * self.std)
        constant = math.log(2 * self.std * math.sqrt(2 * math.pi))
        return torch.nn.functional.softplus(-level - 2 * math.log(self.sigma_data)) - 0.5 * scaled.square() - constant

    @property
    def peak(self) -> float:
        """Log-SNR at which the weight of EDM is largest."""
        # The slope has the sign of -4 std^2 (1 - sigmoid(.)) - (level + 2 mean), so the peak lies in this interval.
        low, high = -2 * self.mean - 4 * self.std**2, -2 * self.mean
        for _ in range(3):  # each round narrows the interval a thousandfold around the highest point of a grid
            grid = torch.linspace(low, high, 2001, dtype=torch.float64)
            best, step = float(grid[self._log_weight(grid).argmax()]), (high - low) / 2000
            low, high = best - step, best + step
        return best

    def _on_noise_error(self, point: PathPoint, level_density: Tensor | None) -> Tensor:
        density = _required(level_density, self)
        return self._log_weight((2 * point.lam).clamp(min=self.peak)).exp() / density


@dataclass(frozen=True)
class InverseNoise(_OwnErrorWeight):
    """1 / noise^2 on the loss's own error: `sigma_sqrt` of the diffusers training scripts, at most `limit`."""

    limit: float = 1e4

    name: ClassVar[str] = "sigma_sqrt"

    def __post_init__(self) -> None:
        _check_above_zero("limit", self.limit)

    def _on_own_error(self, point: PathPoint) -> Tensor:
        return point.noise.square().reciprocal().clamp(max=self.limit)


@dataclass(frozen=True)
class CosMapWeight(_OwnErrorWeight):
    """2 / (pi (1 - 2s + 2s^2)) on the loss's own error, s the noise: `cosmap` of the diffusers scripts."""

    name: ClassVar[str] = "cosmap"

    def _on_own_error(self, point: PathPoint) -> Tensor:
        return 2 / (math.pi * (1 - 2 * point.noise + 2 * point.noise.square()))


@dataclass(frozen=True)
class LatentPower:
    """Weight on interpolants and bridges: the standard deviation of their noise to a power, at most `limit`.

    Power 2 turns the error of the score into that of the latent noise; power -1 with limit 5 is the weight of the
    consecutive Brownian bridge.
    """

    power: float = 0.0
    limit: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.power, int | float) and math.isfinite(self.power)):
            raise ValueError(f"power of a latent weight must be a finite number, got {self.power!r}")
        if self.limit is not None:
            _check_above_zero("limit", self.limit)

    def __call__(self, std: Tensor) -> Tensor:
        """Weight where the noise has standard deviation `std`, of its shape."""
        weight = std.pow(self.power)
        return weight if self.limit is None else weight.clamp(max=self.limit)


def _required(level_density: Tensor | None, weight: LossWeight) -> Tensor:
    if level_density is None:
        raise ValueError(
            f"loss weight {weight.name!r} is stated in log-SNR and needs level_density, the density of the "
            "log-SNR under the training times"
        )
    return level_density


def _check_finite(name: str, value: Any) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(f"{name} of a loss weight must be a finite number, got {value!r}")


def _check_above_zero(name: str, value: Any) -> None:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise ValueError(f"{name} of a loss weight must be a finite number above 0, got {value!r}")
