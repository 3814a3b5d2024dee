"""Rewards: functions of a batch that are counted, checked, and differentiated on request."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Reward = Callable[[Tensor], Tensor]
"""(B, ...) -> (B,): how good each sample is. Steering applies it to data predictions, a tilt to states."""


class CountedReward:
    """A reward that counts what it is asked.

    Parameters
    ----------
    function : Reward

    Attributes
    ----------
    calls, backward_passes : int
        Samples rewarded, and samples differentiated.
    """

    def __init__(self, function: Reward) -> None:
        if not callable(function):
            raise ValueError(
                f"reward={function!r} is not possible; pass a function of a batch (B, ...) that gives (B,)"
            )
        self.function = function
        self.calls = 0
        self.backward_passes = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Rewards (B,) in float64; NaN counts as −inf, with a warning.

        Raises
        ------
        ValueError
            The function does not give one number for each sample.
        """
        return self.sound(self._asked(x).detach()).double()

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (B,) in float64 and their gradients, shaped as `x`; a gradient that is not finite counts as 0."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            values = self._asked(leaf)
            if not values.requires_grad:
                raise ValueError("the reward has no gradient; write it in differentiable torch operations")
            (slope,) = torch.autograd.grad(values.sum(), leaf)
        self.backward_passes += len(x)
        sound = self.sound(values.detach()).double()
        return sound, torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)

    def _asked(self, x: Tensor) -> Tensor:
        values = self.function(x)
        self.calls += len(x)
        if not isinstance(values, Tensor) or values.shape != (len(x),):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"the reward must give one number for each of {len(x)} samples, got {shape}")
        return values

    def sound(self, values: Tensor) -> Tensor:
        """The same (B,) with −inf for NaN, warned of on the host."""
        # on an accelerator a warning would stall the run; there NaN is only replaced
        if values.device.type == "cpu" and bool(values.isnan().any()):
            warnings.warn(
                f"{int(values.isnan().sum())} of {len(values)} rewards are NaN: they count as −inf", stacklevel=4
            )
        return torch.where(values.isnan(), -torch.inf, values)
