"""What is to be sampled: log p = Σ w_i·log q_i + scale·reward, a composition of the laws of network branches.

q_i is what branch i of a network samples (a condition, or another network on the same path); the weights say which law
is meant: one branch of weight β anneals it, weights (1 − w, w) are the law that classifier-free guidance has in mind,
weights 1 and 1 a product of experts, a negative weight takes a law away. See `FeynmanKac` for how it is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..nodes import Level
from .rewards import CountedReward, Reward

_ROUNDING = 1e-12

LogDensity = Callable[[Tensor, Level], Tensor]
"""(states (B, ...), level of the path) -> log q (B,), up to a constant that no level may change."""


@dataclass(frozen=True)
class Branch:
    """One law of a composition.

    Attributes
    ----------
    weight : float, finite and not 0
    kwargs : mapping
        Keyword arguments of the network that replace those of the run.
    model : callable, optional
        Another network of the same path and prediction; by default the run's.
    log_density : callable, optional
        log q at a state and level, for weights that are exact at any step (`DiscreteFeynmanKac`).
    """

    weight: float = 1.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[..., Tensor] | None = None
    log_density: LogDensity | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight != 0.0):
            raise ValueError(f"weight={self.weight!r} is not possible; it must be finite and not 0")

    def __call__(self, network: Callable[..., Tensor], x: Tensor, t: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """The branch's own output."""
        return (self.model or network)(x, t, **{**kwargs, **self.kwargs})


@dataclass(frozen=True)
class Composition:
    """log p_t = Σ w_i·log q_{i,t} + scale(t)·reward, up to a constant.

    Attributes
    ----------
    branches : tuple of Branch
        The sum of their weights must be above 0.
    reward : CountedReward or None
        Of the state.
    scale : callable
        Its factor at path time t, 0 = noise and 1 = data; best 0 at the start.
    """

    branches: tuple[Branch, ...]
    reward: CountedReward | None = None
    scale: Callable[[float], float] = field(default=lambda t: t)

    def __post_init__(self) -> None:
        if not self.branches:
            raise ValueError("branches=() is not possible; a composition needs at least one branch")
        if not self.total > 0.0:
            raise ValueError(
                f"the weights {[branch.weight for branch in self.branches]} sum to {self.total:g}; the sum must be "
                "above 0, else the law cannot be normalised where it is pure noise"
            )

    @property
    def total(self) -> float:
        """W = Σ w_i; where the laws are pure noise, the composition has variance noise²/W."""
        total = math.fsum(branch.weight for branch in self.branches)
        return 1.0 if abs(total - 1.0) < _ROUNDING else total

    @property
    def weights(self) -> tuple[float, ...]:
        """The w_i."""
        return tuple(branch.weight for branch in self.branches)

    def annealed(self, beta: float) -> Composition:
        """The law to the power β > 0 (inverse temperature); a reward is scaled along.

        Raises
        ------
        ValueError
            β is not finite and above 0.
        """
        if not 0.0 < beta < math.inf:
            raise ValueError(f"beta={beta!r} is not possible; it must be finite and above 0")
        branches = tuple(replace(branch, weight=beta * branch.weight) for branch in self.branches)
        scale = self.scale
        return Composition(branches, self.reward, lambda t: beta * scale(t))

    def tilted(self, reward: Reward, scale: float | Callable[[float], float] = 1.0) -> Composition:
        """The law times exp(scale·reward), by default with a scale that grows linearly from 0 at the noise end.

        Parameters
        ----------
        reward : Reward
            Differentiable, unless the proposal is deterministic.
        scale : float or callable
            Factor at the data, or as a function of path time.

        Raises
        ------
        ValueError
            There is a reward already: add the two up instead.
        """
        if self.reward is not None:
            raise ValueError("the composition has a reward already; pass one function that adds the rewards up")
        factor = scale if callable(scale) else (lambda t, most=float(scale): most * t)
        counted = reward if isinstance(reward, CountedReward) else CountedReward(reward)
        return Composition(self.branches, counted, factor)

    def __mul__(self, other: Composition) -> Composition:
        """The product of two laws."""
        if other.reward is not None and self.reward is not None:
            raise ValueError("both factors have a reward; tilt the product by their sum instead")
        tilted = self if self.reward is not None else other
        return Composition(self.branches + other.branches, tilted.reward, tilted.scale)


def law(
    model: Callable[..., Tensor] | None = None, *, log_density: LogDensity | None = None, **kwargs: Any
) -> Composition:
    """The law of one branch: the run's network, or `model`, under the keyword arguments given."""
    return Composition((Branch(1.0, kwargs, model, log_density),))


def annealed(beta: float) -> Composition:
    """q^β: colder for β > 1, hotter for β < 1."""
    return law().annealed(beta)


def guided(scale: float, unconditional: Mapping[str, Any]) -> Composition:
    """q_u^(1−w)·q_c^w: the law that classifier-free guidance of scale w stands for, up to its bias.

    Parameters
    ----------
    scale : float
        1 is the conditional law and 0 the unconditional one, each of one branch.
    unconditional : mapping
        Keyword arguments that replace the run's in the unconditional branch.
    """
    branches = (Branch(scale) if scale != 0.0 else None, Branch(1.0 - scale, unconditional) if scale != 1.0 else None)
    return Composition(tuple(branch for branch in branches if branch is not None))


def product(factors: Sequence[Composition]) -> Composition:
    """Π p_i, the product of experts; raise one to a negative power by hand with `Branch(-gamma, ...)`."""
    if not factors:
        raise ValueError("factors=[] is not possible; give at least one law")
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result
