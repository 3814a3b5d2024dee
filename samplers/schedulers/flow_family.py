"""Flow models: x = (1 − σ)·data + σ·noise, label N·σ, output noise − data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import LinearPath, unknown_name

from ..nodes import Level
from ..numerics import Array
from .arguments import Request
from .betas import betas_of, powers_of
from .family import PREDICTIONS, Family, Schedule, Singles, final_type, wide
from .levels import converted
from .settings import Settings
from .spacing import switched_on

SHIFT_TYPES = ("exponential", "linear")


class FlowFamily(Family):
    """The flow family of one config.

    Parameters
    ----------
    config : mapping
        A scheduler config; `use_flow_sigmas` selects the spacing of stock multistep schedulers.

    Raises
    ------
    ValueError
        Unknown prediction_type or time_shift_type, or contradictory switches.
    """

    def __init__(self, config: Any) -> None:
        kind = config.get("prediction_type", "flow_prediction")
        if kind not in PREDICTIONS:
            raise unknown_name("prediction_type", str(kind), PREDICTIONS)
        if config.get("time_shift_type", "exponential") not in SHIFT_TYPES:
            raise unknown_name("time_shift_type", str(config.get("time_shift_type")), SHIFT_TYPES)
        if config.get("stochastic_sampling") and "method" not in (config.get("pathline") or {}):
            raise ValueError(
                "stochastic_sampling of the stock flow scheduler is not a method here; name one in 'pathline', such as "
                "{'method': 'ddim', 'options': {'eta': 1.0}}, or turn it off"
            )
        self.config = config
        self.path = LinearPath()
        self.prediction = PREDICTIONS[kind]
        self.inverted = bool(config.get("invert_sigmas"))
        self.clean_sigma = 1.0 if self.inverted else 0.0
        self.sign = -1.0 if self.prediction == "velocity" and not self.inverted else 1.0
        self.train_steps = int(config["num_train_timesteps"])
        switched_on(config)
        self.final = final_type(config)

    def schedule(self, request: Request, settings: Settings) -> Schedule:
        """Sigmas of the request, shifted once, as nodes.

        Raises
        ------
        ValueError
            Sigmas outside (0, 1] or not decreasing, or no step.
        """
        given, labels = request.sigmas, request.timesteps
        if given is None and labels is not None and labels[-1] == self.train_steps * self.clean_sigma:
            if len(labels) == 1:
                raise ValueError(f"timesteps=[{labels[0]:g}] holds no step: it is the clean end of a flow model")
            labels = labels[:-1]
        if settings.grid is not None and labels is None and (given is None or _is_uniform(given)):
            return self.on_grid(settings, len(given) if given is not None else request.steps)
        if given is not None:
            sigmas = np.array(given)
            _check("sigmas", sigmas)
            if not settings.exact_sigmas:
                sigmas = self.shifted(sigmas, request)
        elif labels is not None:
            sigmas = self._unlabelled(labels)  # final labels: a shift would part them from their sigmas
            _check("timesteps", sigmas, labels, self.train_steps)
        else:
            sigmas = (
                self._of_betas(request)
                if request.spacing.flow == "betas"
                else self.shifted(self._spaced(request), request)
            )
        _check("sigmas", sigmas)
        fixed = None if labels is None else np.array(labels)
        end = 0.0 if self.final == "zero" else float(sigmas[-1])
        if end and request.spacing.ends_on_betas:
            end = min(end, math.exp(self._beta_range()[0]))
        if end == sigmas[0]:  # one step of length zero would be none
            end = 0.0
        return self.closed(1.0 - sigmas, sigmas, 1.0 - sigmas, fixed, 1.0 - end if self.inverted else end)

    def shifted(self, sigmas: Array, request: Request) -> Array:
        """Resolution shift, stretch to `shift_terminal`, then Karras, exponential or beta levels if asked for."""
        config = self.config
        if config.get("use_dynamic_shifting") and request.mu is not None:
            exponential = config.get("time_shift_type", "exponential") == "exponential"
            factor = math.exp(request.mu) if exponential else request.mu
        else:
            factor = request.shift
        if not factor > 0:
            raise ValueError(f"the shift must be positive, got {factor!r}")
        sigmas = factor * sigmas / (1.0 + (factor - 1.0) * sigmas)
        terminal = config.get("shift_terminal")
        if terminal and sigmas[-1] < 1.0:
            sigmas = 1.0 - (1.0 - sigmas) * ((1.0 - terminal) / (1.0 - sigmas[-1]))
        kind = request.spacing.convert
        return sigmas if kind is None else converted(kind, float(sigmas[0]), float(sigmas[-1]), len(sigmas))

    def level(self, sigma: float) -> tuple[float, float, float]:
        """Signal, noise and time of a public sigma."""
        noise = 1.0 - sigma if self.inverted else sigma
        return 1.0 - noise, noise, 1.0 - noise

    def sigma(self, level: Level) -> float:
        """The noise; the signal for inverted schedules."""
        return level.signal if self.inverted else level.noise

    def label(self, level: Level) -> float:
        """N·σ."""
        return self.train_steps * self.sigma(level)

    def training_sigmas(self, shift: float) -> Array:
        """N levels, shifted unless the shift depends on the resolution, as FlowMatchEuler shows them at first."""
        levels = np.linspace(1.0, 1.0 / self.train_steps, self.train_steps)
        if not self.config.get("use_dynamic_shifting"):
            levels = shift * levels / (1.0 + (shift - 1.0) * levels)
        return 1.0 - levels if self.inverted else levels

    def timesteps(self, sigmas: Singles, labels: Array) -> Singles:
        """N·σ, exactly the float32 product of the public sigmas."""
        return np.asarray(sigmas * np.float32(self.train_steps), dtype=np.float32)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(1 − σ, σ) with σ = timestep/N."""
        return self.mix(wide(timesteps) / self.train_steps)

    def mix(self, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """(1 − σ, σ)."""
        return (sigmas, 1.0 - sigmas) if self.inverted else (1.0 - sigmas, sigmas)

    def velocity(self, data: Tensor, noise: Tensor, point: tuple[Tensor, Tensor]) -> Tensor:
        """The target noise − data, the other way round for inverted schedules."""
        return data - noise if self.inverted else noise - data

    def _spaced(self, request: Request) -> Array:
        steps = request.steps
        if steps > self.train_steps:
            raise ValueError(f"num_inference_steps={steps} is not possible; the model has {self.train_steps} levels")
        lowest = 1.0 / self.train_steps
        if self.config.get("use_flow_sigmas"):
            ends = (1.0 - lowest, 0.0) if request.spacing.flow == "short" else (1.0, lowest)
            return np.linspace(*ends, steps + 1)[:-1]
        return np.linspace(1.0, lowest, steps) if steps > 1 else np.ones(1)

    def _of_betas(self, request: Request) -> Array:
        """Karras levels of the config's betas with the same noise/signal; no shift applies."""
        low, high = (math.exp(v) for v in self._beta_range())
        spacing = request.spacing
        sigmas = converted("karras", spacing.high or high, spacing.low or low, request.steps)
        return sigmas / (1.0 + sigmas)

    def _beta_range(self) -> tuple[float, float]:
        """log(noise/signal) of the outermost training levels of the config's betas."""
        power = powers_of(betas_of(self.config)).double()[[0, -1]]
        low, high = (0.5 * torch.log((1.0 - power) / power)).tolist()
        return low, high

    def _unlabelled(self, labels: tuple[float, ...]) -> Array:
        share = np.array(labels) / self.train_steps
        return 1.0 - share if self.inverted else share


def _is_uniform(sigmas: tuple[float, ...]) -> bool:
    """True for linspace(1, 1/n, n), what pipelines send when the user asked for nothing."""
    count = len(sigmas)
    return bool(np.allclose(sigmas, np.linspace(1.0, 1.0 / count, count), rtol=0, atol=1e-6))


def _check(name: str, sigmas: Array, shown: Sequence[float] | None = None, highest: int = 1) -> None:
    """Raise unless sigmas, `shown` to the caller as argument `name`, lie in (0, 1] and fall."""
    values = sigmas if shown is None else np.array(shown)
    if not ((sigmas > 0).all() and (sigmas <= 1).all()):
        bad = float(values[np.argmax((sigmas <= 0) | (sigmas > 1))])
        raise ValueError(
            f"{name} of a flow model lie in (0, {highest}], got {bad:g}; models with other levels need a noise schedule"
        )
    if not (np.diff(sigmas) < 0).all():
        i = int(np.argmax(np.diff(sigmas) >= 0))
        raise ValueError(f"{name} must decrease, but go from {values[i]:g} to {values[i + 1]:g} at entry {i + 1}")
