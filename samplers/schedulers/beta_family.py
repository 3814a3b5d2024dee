"""Noise schedules with betas: x = √ᾱ·data + √(1 − ᾱ)·noise, label = training index."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, unknown_name

from ..grids import make_nodes
from ..nodes import Level
from ..numerics import Array
from .arguments import Request
from .family import PREDICTIONS, Family, Schedule, beta_levels, final_type, switched_on, wide
from .settings import Settings

SPACINGS = ("linspace", "leading", "trailing")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")
_SMALLEST = 2.0**-24  # stands for ᾱ = 0 in schedules rescaled to zero terminal signal, as in stock solvers


class BetaFamily(Family):
    """The family of one config with betas.

    Parameters
    ----------
    config : mapping
        A scheduler config.

    Raises
    ------
    ValueError
        Unknown prediction_type, beta_schedule or timestep_spacing, or contradictory switches.
    """

    def __init__(self, config: Any) -> None:
        kind = config["prediction_type"]
        if kind not in PREDICTIONS:
            raise unknown_name("prediction_type", str(kind), PREDICTIONS)
        if config["timestep_spacing"] not in SPACINGS:
            raise unknown_name("timestep_spacing", str(config["timestep_spacing"]), SPACINGS)
        self.config = config
        self.betas = betas_of(config)
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)
        if self.alphas_cumprod[-1] == 0:
            self.alphas_cumprod[-1] = min(_SMALLEST, 0.25 * float(self.alphas_cumprod[-2]))
        self.path: DiscretePath = _path(tuple(self.alphas_cumprod.double().tolist()))
        self.prediction = PREDICTIONS[kind]
        self.train_steps = self.path.steps
        self.convert_kind = switched_on(config)
        self.final = final_type(config)

    def schedule(self, request: Request, settings: Settings) -> Schedule:
        """Training indices (or given sigmas = noise/signal) as nodes.

        Raises
        ------
        ValueError
            Indices outside the schedule or not decreasing.
        """
        given, labels = request.sigmas, request.timesteps
        if given is not None:
            return self._from_sigmas(np.array(given), None if labels is None else np.array(labels))
        if labels is None and settings.grid is not None:
            return self.on_grid(settings, request.steps)
        if labels is None and self.convert_kind is not None:
            return self._converted(request.steps)
        index = np.array(labels) if labels is not None else self._spaced(request)
        return self._from_index(index)

    def level(self, sigma: float) -> tuple[float, float, float]:
        """Signal, noise and time of sigma = noise/signal."""
        scale = (1.0 + sigma * sigma) ** -0.5
        time = float(self.path.time_at(-np.log(sigma))) if sigma > 0 else 1.0
        return scale, sigma * scale, time

    def sigma(self, level: Level) -> float:
        """noise/signal."""
        return level.noise / level.signal

    def label(self, level: Level) -> float:
        """Training index N(1 − t) − 1, whole where it is one but for rounding."""
        index = self.train_steps * (1.0 - level.time) - 1.0
        whole = round(index)
        return float(whole) if abs(index - whole) < 1e-6 * self.train_steps else max(index, 0.0)

    def training_sigmas(self, shift: float) -> Array:
        """noise/signal of all training levels."""
        power = self.alphas_cumprod.double().flip(0).numpy()
        return np.sqrt((1.0 - power) / power)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise) at training indices."""
        time = 1.0 - (wide(timesteps) + 1.0) / self.train_steps
        return self.path.signal(time), self.path.noise(time)

    def mix(self, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise) of noise/signal."""
        signal = torch.rsqrt(1.0 + sigmas.square())
        return signal, sigmas * signal

    def velocity(self, data: Tensor, noise: Tensor, point: tuple[Tensor, Tensor]) -> Tensor:
        """The v target signal·noise − noise·data."""
        return point[0] * noise - point[1] * data

    def _spaced(self, request: Request) -> Array:
        """Training indices as stock schedulers space them, falling."""
        total, steps = self.train_steps, request.steps
        if steps > total:
            raise ValueError(f"num_inference_steps={steps} is not possible; the model has {total} levels")
        spacing = self.config["timestep_spacing"]
        count = steps + 1 if request.multistep else steps
        if spacing == "trailing":
            return np.round(total - np.arange(steps) * (total / steps)) - 1.0
        if spacing == "linspace":
            return np.asarray(np.linspace(0, total - 1, count).round()[::-1][:steps], dtype=np.float64)
        falling = np.arange(count, dtype=np.float64)[::-1][:steps]
        return np.asarray(falling * (total // count) + request.steps_offset, dtype=np.float64)

    def _from_index(self, index: Array) -> Schedule:
        if index.min() < 0 or index.max() > self.train_steps - 1:
            bad = float(index.max() if index.max() > self.train_steps - 1 else index.min())
            raise ValueError(f"timestep {bad:g} is not possible; the model has levels 0 to {self.train_steps - 1}")
        if not (np.diff(index) < 0).all():
            i = int(np.argmax(np.diff(index) >= 0))
            raise ValueError(f"timesteps must decrease, but go from {index[i]:g} to {index[i + 1]:g} at entry {i + 1}")
        times = 1.0 - (index + 1.0) / self.train_steps
        if self.final == "zero":
            return Schedule(make_nodes(self.path, np.append(times, 1.0)))
        lowest = 1.0 - 1.0 / self.train_steps
        if times[-1] < lowest:
            return Schedule(make_nodes(self.path, np.append(times, lowest)))
        if len(times) < 2:
            raise ValueError("one step at training index 0 with final_sigmas_type='sigma_min' leaves nothing to do")
        return Schedule(make_nodes(self.path, times), idle_end=True)

    def _from_sigmas(self, sigmas: Array, labels: Array | None) -> Schedule:
        if not ((sigmas > 0).all() and (np.diff(sigmas) < 0).all() and np.isfinite(sigmas).all()):
            raise ValueError(f"sigmas (noise/signal) must be positive and decrease, got {sigmas.tolist()}")
        scale = (1.0 + sigmas**2) ** -0.5
        time = np.asarray(self.path.time_at(torch.from_numpy(-np.log(sigmas))))
        smallest = float(np.exp(-self.path.lambda_max))
        end = 0.0 if self.final == "zero" else min(smallest, float(sigmas[-1]))
        return self.closed(scale, sigmas * scale, time, labels, end)

    def _converted(self, steps: int) -> Schedule:
        """Karras, exponential or beta levels between the training extremes."""
        if self.convert_kind == "beta":
            low, high = np.exp(-self.path.lambda_max), np.exp(-self.path.lambda_min)
            return self._from_sigmas(beta_levels(float(low), float(high), steps), None)
        final = "zero" if self.final == "zero" else "path"
        count = steps if self.final == "zero" else steps - 1
        schedule = Schedule(make_nodes(self.path, str(self.convert_kind), count, final=final))
        return schedule if self.final == "zero" else Schedule(schedule.nodes, idle_end=True)


def betas_of(config: Any) -> Tensor:
    """float32 betas of a config, bit for bit those of stock schedulers.

    Raises
    ------
    ValueError
        Unknown beta_schedule.
    """
    if config["trained_betas"] is None and config["beta_schedule"] not in BETA_SCHEDULES:
        raise unknown_name("beta_schedule", str(config["beta_schedule"]), BETA_SCHEDULES)
    trained = config["trained_betas"]
    return _stock_betas(
        int(config["num_train_timesteps"]),
        float(config["beta_start"]),
        float(config["beta_end"]),
        str(config["beta_schedule"]),
        None if trained is None else tuple(float(b) for b in trained),
        bool(config["rescale_betas_zero_snr"]),
    ).clone()


@lru_cache(maxsize=8)
def _stock_betas(
    steps: int, start: float, end: float, schedule: str, trained: tuple[float, ...] | None, rescaled: bool
) -> Tensor:
    from diffusers import DDPMScheduler

    stock = DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=start,
        beta_end=end,
        beta_schedule=schedule,
        trained_betas=None if trained is None else list(trained),
        rescale_betas_zero_snr=rescaled,
    )
    return stock.betas


@lru_cache(maxsize=8)
def _path(alphas_cumprod: tuple[float, ...]) -> DiscretePath:
    return DiscretePath(alphas_cumprod)
