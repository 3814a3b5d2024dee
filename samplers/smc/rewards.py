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
        self._odd: dict[str, Tensor] = {}  # counts not yet reported, where they were found

    def __call__(self, x: Tensor) -> Tensor:
        """Rewards (B,) in float64; NaN counts as −inf, with a warning.

        Raises
        ------
        ValueError
            The function does not give one number for each sample.
        """
        return self.sound(self._asked(x).detach()).double()

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (B,) in float64 and their gradients, shaped as `x`; NaN and ±inf count as 0, with a warning."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            values = self._asked(leaf)
            if not values.requires_grad:
                raise ValueError("the reward has no gradient; write it in differentiable torch operations")
            (slope,) = torch.autograd.grad(values.sum(), leaf)
        self.backward_passes += len(x)
        sound = self.sound(values.detach()).double()
        return sound, self.sound_slope(slope, values.detach())

    def _asked(self, x: Tensor) -> Tensor:
        values = self.function(x)
        self.calls += len(x)
        if not isinstance(values, Tensor) or values.shape != (len(x),):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"the reward must give one number for each of {len(x)} samples, got {shape}")
        return values

    def sound(self, values: Tensor) -> Tensor:
        """The same (B,) with −inf for NaN, warned of: at once on the host, else by the next `report`."""
        odd = values.isnan()
        self._note("rewards are NaN: they count as −inf", odd)
        return torch.where(odd, -torch.inf, values)

    def sound_slope(self, slope: Tensor, values: Tensor) -> Tensor:
        """Gradients (B, ...) with 0 for what is not finite; as `sound`, warned of where the reward (B,) is finite."""
        odd = ~torch.isfinite(slope)
        spoilt = odd.flatten(1).any(1) & torch.isfinite(values)
        self._note("gradients of the reward are not finite: such entries count as 0", spoilt)
        return torch.where(odd, 0.0, slope)

    def report(self) -> None:
        """Warn of what was not sound since the last report; reads the host if anything was asked."""
        noted, self._odd = self._odd, {}
        for message, count in noted.items():
            if number := int(count):
                warnings.warn(f"{number} {message}", stacklevel=2)

    def _note(self, message: str, odd: Tensor) -> None:
        # reading an accelerator here would stall the run: it only counts, until a checkpoint reads it anyway
        self._odd[message] = self._odd.get(message, 0) + odd.sum()
        if odd.device.type == "cpu":
            self.report()
