"""Closed-form models: data laws whose denoisers, scores and densities are known on every path.

A target is the law of the data. At a state x = signal * data + noise * eps it gives E[data|x] and the score of
x without a network, so tests, benchmarks and demonstrations have an exact model. All targets accept `x` of shape
(B, ...) with as many entries per sample as the target has dimensions.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import check_name
from .path import PREDICTIONS, GaussianPath
from .tensors import Time, as_float_tensor, match, time_for, widen

Level = float | Tensor


class Target(ABC):
    """Base of the closed-form models.

    Parameters live in float64 on the CPU; calls use them in the type and on the device of `x` (half precision
    is raised to float32 inside). Sub-classes give `_moments` and `_log_density` on flat states.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)
        self.dimension = int(torch.Size(self.shape).numel())
        self._casts: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def _parameter(self, name: str, like: Tensor) -> Tensor:
        key = (name, like.dtype, like.device)
        if key not in self._casts:
            self._casts[key] = getattr(self, name).to(dtype=like.dtype).to(like.device)
        return self._casts[key]

    @abstractmethod
    def _moments(self, x: Tensor, signal: Tensor, noise: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
        """E[data|x] and minus the score, both (B, d), for x (B, d) and levels of shape (B, 1) or (1, 1)."""

    @abstractmethod
    def _log_density(self, x: Tensor, signal: Tensor, noise: Tensor, labels: Any) -> Tensor:
        """Log p(x), shape (B,), arguments as `_moments`."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of the data, shape (d,), float64."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Covariance of the data, shape (d, d), float64."""

    @abstractmethod
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        labels: Any = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Draw `n` samples of the data, shape (n, *shape); the generator is a CPU one."""

    def _prepare(self, x: Tensor, signal: Level, noise: Level) -> tuple[Tensor, Tensor, Tensor]:
        if x.ndim < 1 or not x.is_floating_point():
            raise ValueError(f"x must be a floating tensor of shape (B, ...), got {x.dtype} {tuple(x.shape)}")
        flat = widen(x).reshape(x.shape[0], -1)
        if flat.shape[1] != self.dimension:
            raise ValueError(
                f"x must have {self.dimension} entries per sample, as in (B, *{self.shape}), got shape {tuple(x.shape)}"
            )
        signal = match(as_float_tensor(signal), flat).reshape(-1, 1)
        return flat, signal, match(as_float_tensor(noise), flat).reshape(-1, 1)

    def data_prediction(self, x: Tensor, signal: Level, noise: Level, labels: Any = None) -> Tensor:
        """E[data|x] at the state x = signal * data + noise * eps.

        Parameters
        ----------
        x : Tensor, shape (B, ...)
        signal, noise : float or Tensor of shape () or (B,)
        labels : None, int or Tensor of shape (B,)
            Class of each sample; None or -1 stands for all classes together.

        Raises
        ------
        ValueError
            If shapes do not fit or a label is not a class of the target.
        """
        data, _ = self._moments(*self._prepare(x, signal, noise), labels)
        return data.to(x.dtype).reshape(x.shape)

    def score(self, x: Tensor, signal: Level, noise: Level, labels: Any = None) -> Tensor:
        """Gradient of log p(x), in closed form (no division by noise); arguments as `data_prediction`."""
        _, minus_score = self._moments(*self._prepare(x, signal, noise), labels)
        return -minus_score.to(x.dtype).reshape(x.shape)

    def log_density(self, x: Tensor, signal: Level = 1.0, noise: Level = 0.0, labels: Any = None) -> Tensor:
        """Log p(x), shape (B,), of the state; with the default levels that of the data itself."""
        return self._log_density(*self._prepare(x, signal, noise), labels).to(x.dtype)

    def as_model(self, path: GaussianPath, prediction: str = "data") -> "TargetModel":
        """Make the exact network of this data on `path`: a callable model(x, t, labels=None).

        Raises
        ------
        ValueError
            If `prediction` is not one of `PREDICTIONS`.
        """
        return TargetModel(self, path, check_name("prediction", prediction, PREDICTIONS))


@dataclass(frozen=True, eq=False)
class TargetModel:
    """The exact network of a target on a path; made by `Target.as_model`."""

    target: Target
    path: GaussianPath
    prediction: str = "data"

    def __call__(self, x: Tensor, t: Time, labels: Any = None) -> Tensor:
        """Evaluate at states (B, ...) and times of shape () or (B,); any prediction, no 0/0 at the ends."""
        times = time_for(t, widen(x))
        flat, signal, noise = self.target._prepare(x, self.path.signal(times), self.path.noise(times))
        data, minus_score = self.target._moments(flat, signal, noise, labels)
        if self.prediction == "data":
            result = data
        elif self.prediction == "score":
            result = -minus_score
        elif self.prediction == "noise":
            result = noise * minus_score
        elif self.prediction == "v":
            result = noise * (signal * minus_score - data)
        else:
            # noise_rate * E[noise|x] = (noise * noise_rate) * minus_score: finite where noise_rate is not.
            signal_rate = match(self.path.signal_rate(times), flat)
            product = match(self.path.noise_noise_rate(times), flat)
            result = signal_rate * data + product * minus_score
        return result.to(x.dtype).reshape(x.shape)
