"""The betas of a config and the path they make."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, unknown_name

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")
_SMALLEST = 2.0**-24  # stands for ᾱ = 0 in schedules rescaled to zero terminal signal, as in stock solvers


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


def powers_of(betas: Tensor) -> Tensor:
    """ᾱ = signal² of the training levels, with a small number for a terminal 0; float32, index 0 first."""
    powers = torch.cumprod(1.0 - betas, dim=0)
    if powers[-1] == 0:
        powers[-1] = min(_SMALLEST, 0.25 * float(powers[-2]))
    return powers


@lru_cache(maxsize=8)
def path_through(powers: tuple[float, ...]) -> DiscretePath:
    """The path through these ᾱ, index 0 first."""
    return DiscretePath(powers)


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
