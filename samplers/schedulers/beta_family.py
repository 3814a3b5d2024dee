"""Noise schedules with betas: x = √ᾱ·data + √(1 − ᾱ)·noise, label = training index."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, unknown_name

from ..grids import make_nodes
from ..nodes import Level
from ..numerics import Array
from .arguments import Request
from .betas import betas_of, path_through, powers_of
from .family import PREDICTIONS, Family, Schedule, final_type, wide
from .levels import converted, spaced_indices
from .settings import Settings
from .spacing import Spacing, switched_on

SPACINGS = ("linspace", "leading", "trailing")
_SLACK = 1e-6


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
        self.alphas_cumprod = powers_of(self.betas)
        self.path: DiscretePath = path_through(tuple(self.alphas_cumprod.double().tolist()))
        self._log_sigmas = np.log(self.training_sigmas(1.0)[::-1])
        self.prediction = PREDICTIONS[kind]
        self._blind = self.prediction == "noise" and float(self.betas.max()) >= 1.0
        self._knots: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.train_steps = self.path.steps
        switched_on(config)
        self.final = final_type(config)

    def schedule(self, request: Request, settings: Settings) -> Schedule:
        """Training indices (or given sigmas = noise/signal) as nodes.

        Raises
        ------
        ValueError
            Indices outside the schedule or not decreasing, a shift by mu, or a first level of signal 0 where the
            network predicts the noise.
        """
        if request.mu is not None:
            raise ValueError(f"mu={request.mu:g} shifts flow schedules; this scheduler has a schedule with betas")
        schedule = self._scheduled(request, settings)
        if self._blind and schedule.nodes.lam[0] <= self.path.lambda_min + _SLACK:
            raise ValueError(
                "a network that predicts the noise (prediction_type='epsilon') tells nothing of the data at signal 0, "
                "where this run begins, as with rescale_betas_zero_snr; begin below the first training level "
                "(timestep_spacing='leading', or timesteps), or use a network of type 'v_prediction' or 'sample'"
            )
        return schedule

    def _scheduled(self, request: Request, settings: Settings) -> Schedule:
        given, labels = request.sigmas, request.timesteps
        if given is not None:
            return self._from_sigmas(np.array(given), None if labels is None else np.array(labels))
        if labels is None and settings.grid is not None:
            return self.on_grid(settings, request.steps)
        spacing = request.spacing
        index = np.array(labels) if labels is not None else spaced_indices(request.steps, -self._log_sigmas, spacing)
        if labels is None and spacing.convert is not None:
            return self._converted(spacing.convert, request, index)
        return self._from_index(index, spacing)

    def level(self, sigma: float) -> tuple[float, float, float]:
        """Signal, noise and time of sigma = noise/signal."""
        scale = (1.0 + sigma * sigma) ** -0.5
        time = float(self.path.time_at(-np.log(sigma))) if sigma > 0 else 1.0
        return scale, sigma * scale, time

    def sigma(self, level: Level) -> float:
        """noise/signal."""
        return level.noise / level.signal

    def label(self, level: Level) -> float:
        """Training index, between two of them linear in log σ; that of the lowest level where σ is below it."""
        index = float(np.interp(-level.lam, self._log_sigmas, np.arange(self.train_steps)))
        whole = round(index)
        return float(whole) if abs(index - whole) < 1e-6 * self.train_steps else index

    def training_sigmas(self, shift: float) -> Array:
        """noise/signal of all training levels."""
        power = self.alphas_cumprod.double().flip(0).numpy()
        return np.sqrt((1.0 - power) / power)

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise) at training indices, as `label` names them."""
        index = wide(timesteps)
        kind = index.device, index.dtype
        if kind not in self._knots:  # in-painting asks in every step: copied to the device once
            self._knots[kind] = torch.as_tensor(self._log_sigmas).to(*kind)
        knots = self._knots[kind]
        below = index.floor().clamp(0, self.train_steps - 2).long()
        low, high = knots.take(below), knots.take(below + 1)  # an index of no dimension would be read on the host
        return self.mix(torch.lerp(low, high, (index - below).clamp(0.0, 1.0)).exp())

    def mix(self, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise) of noise/signal."""
        signal = torch.rsqrt(1.0 + sigmas.square())
        return signal, sigmas * signal

    def velocity(self, data: Tensor, noise: Tensor, point: tuple[Tensor, Tensor]) -> Tensor:
        """The v target signal·noise − noise·data."""
        return point[0] * noise - point[1] * data

    def _from_index(self, index: Array, spacing: Spacing) -> Schedule:
        if index.min() < 0 or index.max() > self.train_steps - 1:
            bad = float(index.max() if index.max() > self.train_steps - 1 else index.min())
            raise ValueError(f"timestep {bad:g} is not possible; the model has levels 0 to {self.train_steps - 1}")
        if not (np.diff(index) < 0).all():
            i = int(np.argmax(np.diff(index) >= 0))
            raise ValueError(f"timesteps must decrease, but go from {index[i]:g} to {index[i + 1]:g} at entry {i + 1}")
        if not np.array_equal(index, np.round(index)):
            sigmas = np.exp(self._between(index)) if spacing.whole else self._between(index, np.exp(self._log_sigmas))
            return replace(self._from_sigmas(sigmas, index), nominal=True)
        times = 1.0 - (index + 1.0) / self.train_steps
        lowest = 1.0 - 1.0 / self.train_steps
        if self.final == "zero" or (index[-1] == 0 and len(index) == 1):  # one step of length zero would be none
            return Schedule(make_nodes(self.path, np.append(times, 1.0)))
        if index[-1] > 0:
            return Schedule(make_nodes(self.path, np.append(times, lowest)))
        return Schedule(make_nodes(self.path, times), idle_end=True)

    def _between(self, index: Array, knots: Array | None = None) -> Array:
        """Values at indices, linear between those at the training levels (log σ by default)."""
        return np.interp(index, np.arange(self.train_steps), self._log_sigmas if knots is None else knots)

    def _from_sigmas(self, sigmas: Array, labels: Array | None) -> Schedule:
        if not ((sigmas > 0).all() and (np.diff(sigmas) < 0).all() and np.isfinite(sigmas).all()):
            raise ValueError(f"sigmas (noise/signal) must be positive and decrease, got {sigmas.tolist()}")
        scale = (1.0 + sigmas**2) ** -0.5
        time = np.asarray(self.path.time_at(torch.from_numpy(-np.log(sigmas))))
        smallest = float(np.exp(-self.path.lambda_max))
        nothing = len(sigmas) == 1 and sigmas[0] <= smallest * (1.0 + _SLACK)  # one step of length zero would be none
        end = 0.0 if self.final == "zero" or nothing else min(smallest, float(sigmas[-1]))
        return self.closed(scale, sigmas * scale, time, labels, end)

    def _converted(self, kind: str, request: Request, index: Array) -> Schedule:
        """Karras, exponential or beta levels between the training extremes or those of the spaced indices."""
        spacing, lowest, highest = request.spacing, self._log_sigmas[0], self._log_sigmas[-1]
        low, high = self._between(index[[-1, 0]]) if spacing.between_spaced else (lowest, highest)
        low = low if spacing.low is None else math.log(spacing.low)
        high = high if spacing.high is None else math.log(spacing.high)
        if low < lowest - _SLACK or high > highest + _SLACK:
            warnings.warn(
                f"sigma_min={spacing.low} or sigma_max={spacing.high} of the config lies outside the noise levels that "
                f"its betas define, {math.exp(lowest):.4g} to {math.exp(highest):.4g}; levels are kept inside",
                stacklevel=6,
            )
            low, high = max(low, lowest), min(high, highest)
        return self._from_sigmas(converted(kind, math.exp(high), math.exp(low), request.steps), None)
