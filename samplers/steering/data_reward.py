"""Rewards of predicted data: asked in chunks, told the level, and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..nodes import Level
from ..smc.rewards import CountedReward


class DataReward(CountedReward):
    """A reward of the data prediction.

    Parameters
    ----------
    function : callable data (B, ...) -> (B,)
        With `takes_level`, (data, level) -> (B,), for twists whose spread depends on the noise left.
    chunk_size : int, optional
        Largest batch that the function is given at once.
    takes_level : bool

    Attributes
    ----------
    calls, backward_passes : as in `CountedReward`: samples rewarded, and samples differentiated

    Notes
    -----
    NaN counts as −inf, with a warning on the host; −inf is weight 0; what +inf does is refused where weights are made.
    """

    def __init__(self, function: Any, *, chunk_size: int | None = None, takes_level: bool = False) -> None:
        super().__init__(function)
        if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
            raise ValueError(f"chunk_size={chunk_size!r} is not possible; it must be a whole number, at least 1")
        if takes_level:
            self.function = lambda data: function(data, self._level)
        self.chunk_size = chunk_size
        self._level: Level | None = None

    def at(self, data: Tensor, level: Level) -> Tensor:
        """Rewards (B,) in float64 of data predicted at `level`."""
        self._level = level
        return self(data)

    def differentiable(self, data: Tensor, level: Level) -> Tensor:
        """Rewards (B,) with their graph, unchecked but for the shape; the caller differentiates, and counts it."""
        self._level = level
        return self._asked(data)

    def _asked(self, x: Tensor) -> Tensor:
        if self.chunk_size is None or len(x) <= self.chunk_size:
            return super()._asked(x)
        parts = x.split(self.chunk_size)
        return torch.cat([super(DataReward, self)._asked(part) for part in parts])


def as_data_reward(reward: Any) -> DataReward:
    """A `DataReward` itself, or one around a function."""
    return reward if isinstance(reward, DataReward) else DataReward(reward)


def through_decoder(vae: Any, reward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A reward of images as a reward of a diffusers pipeline's latents: reward(vae.decode(latents/scale + shift)).

    The images are as the autoencoder gives them, about −1 to 1. Pass it to a `DataReward` with a chunk_size, since
    decoding costs memory; pipelines that pack their latents (Flux) need a function of their own.
    """
    config = vae.config
    scale = float(config.get("scaling_factor") or 1.0)
    shift = float(config.get("shift_factor") or 0.0)

    def rewarded(latents: Tensor) -> Tensor:
        return reward(vae.decode((latents / scale + shift).to(vae.dtype), return_dict=False)[0])

    return rewarded
