"""Markov chain moves at one level: they leave a law as it is and part copies of one particle.

Every move decides for each sample on its own and draws keyed noise, so that a batch split changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..keyed_noise import keyed_normal
from ..nodes import Level
from ..run_state import Hook, RunState
from .discrete import DiscreteFeynmanKac
from .particles import newest

Density = Callable[[Tensor], Tensor]
"""States (B, ...) -> log density (B,) up to a constant, differentiable."""

_SLOT = 1 << 16  # first of the slots of moves: a row has no such number of draws of its own


class Moved(NamedTuple):
    """States after some moves, and the share of proposals accepted (B,)."""

    state: Tensor
    accepted: Tensor


class _Draws:
    """Keyed noise, one slot after another."""

    def __init__(self, seed: int, samples: Tensor, row: int) -> None:
        self.seed, self.samples, self.row, self.slot = seed, samples, row, _SLOT

    def like(self, x: Tensor) -> Tensor:
        self.slot += 1
        shape = x.shape[1:]
        return keyed_normal(shape, self.seed, self.samples, self.row, self.slot, dtype=x.dtype, device=x.device)

    def log_uniform(self, x: Tensor) -> Tensor:
        """Log U (B,): U is the normal distribution function of a normal draw."""
        return torch.special.log_ndtr(self.like(x.new_empty(len(x), dtype=torch.float64)))


def ula(x: Tensor, density: Density, step: float, *, steps: int = 1, seed: int = 0, row: int = 0,
        samples: Tensor | None = None) -> Tensor:  # fmt: skip
    """Unadjusted Langevin moves x + h·∇log p + √(2h)·z; the variance of N(0, 1) becomes 1/(1 − h/2).

    Parameters
    ----------
    x : (B, ...)
    density : Density
    step : float > 0
        h.
    steps : int
    seed, row, samples : keys of the noise, as in `keyed_normal`; samples default to 0..B−1
    """
    draws = _begin(x, step, seed, row, samples)
    for _ in range(steps):
        _, slope = _with_slope(density, x)
        x = x + step * slope + math.sqrt(2.0 * step) * draws.like(x)
    return x


def mala(x: Tensor, density: Density, step: float, *, steps: int = 1, seed: int = 0, row: int = 0,
         samples: Tensor | None = None) -> Moved:  # fmt: skip
    """Langevin moves accepted or not (Roberts and Tweedie 1996), sample by sample; arguments as `ula`."""
    draws = _begin(x, step, seed, row, samples)
    value, slope = _with_slope(density, x)
    accepted = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for _ in range(steps):
        proposal = x + step * slope + math.sqrt(2.0 * step) * draws.like(x)
        there, back = _with_slope(density, proposal)
        ratio = (
            there - value + (_squares(proposal - x - step * slope) - _squares(x - proposal - step * back)) / (4 * step)
        )
        taken = draws.log_uniform(x) < ratio  # false for NaN
        accepted += taken
        x, slope = (_choose(taken, new, old) for new, old in ((proposal, x), (back, slope)))
        value = torch.where(taken, there, value)
    return Moved(x, accepted / max(1, steps))


def uhmc(x: Tensor, density: Density, step: float, *, steps: int = 1, leaps: int = 5, keep: float = 0.5, seed: int = 0,
         row: int = 0, samples: Tensor | None = None) -> Moved:  # fmt: skip
    """Underdamped Hamiltonian moves: partly refreshed momenta and `leaps` leapfrog steps of unit mass, then a decision.

    Parameters
    ----------
    keep : float in [0, 1)
        γ in v ← γ·v + √(1 − γ²)·z; 0 is Hamiltonian Monte Carlo. A rejected move turns the momentum round.
    Others as `ula`.
    """
    if not 0.0 <= keep < 1.0:
        raise ValueError(f"keep={keep!r} is not possible; it must lie in [0, 1)")
    draws = _begin(x, step, seed, row, samples)
    value, slope = _with_slope(density, x)
    momentum = draws.like(x)
    accepted = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for _ in range(steps):
        momentum = keep * momentum + math.sqrt(1.0 - keep**2) * draws.like(x)
        state, speed, there, pull = x, momentum, value, slope
        for _ in range(leaps):
            speed = speed + 0.5 * step * pull
            state = state + step * speed
            there, pull = _with_slope(density, state)
            speed = speed + 0.5 * step * pull
        ratio = there - value + 0.5 * (_squares(momentum) - _squares(speed))
        taken = draws.log_uniform(x) < ratio
        accepted += taken
        pairs = ((state, x), (pull, slope), (speed, -momentum))
        x, slope, momentum = (_choose(taken, new, old) for new, old in pairs)
        value = torch.where(taken, there, value)
    return Moved(x, accepted / max(1, steps))


class Rejuvenation(Hook):
    """MALA moves after every row of a `DiscreteFeynmanKac` run; put it behind that hook.

    Each move costs a density and its gradient, not a network call of the run. The step at a level is
    `step`·noise²/W, so that it fits the width of the law all along.

    Attributes
    ----------
    accepted : list of float tensors (B,)
        Share of accepted proposals, row by row.
    """

    def __init__(self, particles: DiscreteFeynmanKac, step: float = 0.1, steps: int = 1) -> None:
        _check_step(step)
        self.particles, self.step, self.steps = particles, step, steps
        self.accepted: list[Tensor] = []

    def after_row(self, run: RunState) -> None:
        """Move the new states at their own level."""
        levels: list[Level] = [*(row.level for row in run.table.rows), run.table.end]
        level, at, target = levels[run.row + 1], newest(run), self.particles.target
        step = self.step * level.noise**2 / target.total
        moved = mala(run.values[at], lambda x: self.particles.log_target(x, level), step, steps=self.steps,
                     seed=run.seed, row=run.row, samples=run.samples)  # fmt: skip
        run.values[at] = moved.state
        run.extras.pop("log_target", None)  # of the state before the move
        self.accepted.append(moved.accepted)


def _begin(x: Tensor, step: float, seed: int, row: int, samples: Tensor | None) -> _Draws:
    _check_step(step)
    return _Draws(seed, torch.arange(len(x), device=x.device) if samples is None else samples, row)


def _check_step(step: float) -> None:
    if not 0.0 < step < math.inf:
        raise ValueError(f"step={step!r} is not possible; it must be finite and above 0")


def _with_slope(density: Density, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        value = density(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().double(), slope


def _squares(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).sum(1)


def _choose(taken: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(taken.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
