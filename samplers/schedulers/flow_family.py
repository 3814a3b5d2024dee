"""Flow models: x = (1 − σ)·data + σ·noise, label N·σ, output noise − data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from pathline.interpolants import LinearPath, unknown_name

from ..nodes import Level
from ..numerics import Array
from .arguments import Request
from .family import PREDICTIONS, Family, Schedule, Singles, beta_levels, final_type, switched_on, wide
from .settings import Settings

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
        self.convert_kind = switched_on(config)
        self.final = final_type(config)

    def schedule(self, request: Request, settings: Settings) -> Schedule:
        """Sigmas of the request, shifted once, as nodes.

        Raises
        ------
        ValueError
            Sigmas outside (0, 1] or not decreasing.
        """
        given, labels = request.sigmas, request.timesteps
        if given is None and labels is not None and labels[-1] == self.train_steps * self.clean_sigma:
            labels = labels[:-1]
        if settings.grid is not None and labels is None and (given is None or _is_uniform(given)):
            return self.on_grid(settings, len(given) if given is not None else request.steps)
        if given is not None:
            sigmas = np.array(given)
            if not settings.exact_sigmas:
                sigmas = self.shifted(sigmas, request)
        elif labels is not None:
            sigmas = self._unlabelled(labels)  # final labels: a shift would part them from their sigmas
        else:
            sigmas = self.shifted(self._spaced(request.steps), request)
        _check(sigmas)
        fixed = None if labels is None else np.array(labels)
        end = 0.0 if self.final == "zero" else float(sigmas[-1])
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
        return self._converted(sigmas)

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

    def _spaced(self, steps: int) -> Array:
        if steps > self.train_steps:
            raise ValueError(f"num_inference_steps={steps} is not possible; the model has {self.train_steps} levels")
        lowest = 1.0 / self.train_steps
        if self.config.get("use_flow_sigmas"):
            return np.linspace(1.0, lowest, steps + 1)[:-1]
        return np.linspace(1.0, lowest, steps)

    def _unlabelled(self, labels: tuple[float, ...]) -> Array:
        share = np.array(labels) / self.train_steps
        return 1.0 - share if self.inverted else share

    def _converted(self, sigmas: Array) -> Array:
        high, low, count = float(sigmas[0]), float(sigmas[-1]), len(sigmas)
        if self.convert_kind == "karras":
            return np.asarray(np.linspace(high ** (1 / 7), low ** (1 / 7), count) ** 7)
        if self.convert_kind == "exponential":
            return np.geomspace(high, low, count)
        if self.convert_kind == "beta":
            return beta_levels(low, high, count)
        return sigmas


def _is_uniform(sigmas: tuple[float, ...]) -> bool:
    """True for linspace(1, 1/n, n), what pipelines send when the user asked for nothing."""
    count = len(sigmas)
    return bool(np.allclose(sigmas, np.linspace(1.0, 1.0 / count, count), rtol=0, atol=1e-6))


def _check(sigmas: Array) -> None:
    if not ((sigmas > 0).all() and (sigmas <= 1).all()):
        bad = float(sigmas[np.argmax((sigmas <= 0) | (sigmas > 1))])
        raise ValueError(
            f"sigmas of a flow model lie in (0, 1], got {bad:g}; models with other levels need a noise schedule"
        )
    if not (np.diff(sigmas) < 0).all():
        i = int(np.argmax(np.diff(sigmas) >= 0))
        raise ValueError(f"sigmas must decrease, but go from {sigmas[i]:g} to {sigmas[i + 1]:g} at entry {i + 1}")
