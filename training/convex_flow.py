"""c-rectified flow: paths straightened within the flows that lower one convex cost.

Liu, "Rectified flow: a marginal preserving approach to optimal transport", 2022 (arXiv:2209.14577). The velocity is
restricted to ∇c*(∇φ_t) of a scalar potential, which takes away the part of the flow that turns without transporting;
repeated, the coupling tends to one that is optimal for c. Plain rectified flow lowers all convex costs, and may stop
at a coupling that is straight and optimal for none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pathline.interpolants.tensors import match

Potential = Callable[..., Tensor]
"""φ: x (B, ...) and t (B,) to (B,)."""


class ConvexCost(Protocol):
    """A strictly convex, differentiable cost of displacements, c, with its conjugate c*(y) = sup_x x·y − c(x)."""

    def value(self, x: Tensor) -> Tensor:
        """The cost of each displacement, (B, ...) -> (B,)."""
        ...

    def conjugate(self, y: Tensor) -> Tensor:
        """c*, (B, ...) -> (B,)."""
        ...

    def velocity(self, y: Tensor) -> Tensor:
        """∇c*, of the shape of `y`."""
        ...


@dataclass(frozen=True)
class PowerCost:
    """c(x) = Σ |x|^p / p over the entries of a sample, with its conjugate c*(y) = Σ |y|^q / q, 1/p + 1/q = 1.

    Parameters
    ----------
    power : float > 1
        2 is half the squared distance, where ∇c* is the identity.

    Raises
    ------
    ValueError
        A power of 1 or less: the conjugate is not smooth.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not 1.0 < self.power < float("inf"):
            raise ValueError(f"power={self.power!r} is not possible; the conjugate is smooth for finite powers above 1")

    @property
    def conjugate_power(self) -> float:
        """The q of 1/p + 1/q = 1."""
        return self.power / (self.power - 1.0)

    def value(self, x: Tensor) -> Tensor:
        """The cost of each displacement, (B, ...) -> (B,)."""
        return x.abs().pow(self.power).flatten(1).sum(1) / self.power

    def conjugate(self, y: Tensor) -> Tensor:
        """sup_x x·y − c(x), (B, ...) -> (B,)."""
        return y.abs().pow(self.conjugate_power).flatten(1).sum(1) / self.conjugate_power

    def velocity(self, y: Tensor) -> Tensor:
        """∇c*, of the shape of `y`: the displacement that attains the supremum."""
        return y.sign() * y.abs().pow(self.conjugate_power - 1.0)


def gradient_of(potential: Potential, x: Tensor, t: Tensor, *, differentiable: bool = False, **kwargs: Any) -> Tensor:
    """∇_x φ, of the shape of x; with `differentiable`, gradients flow on to the parameters of φ."""
    with torch.enable_grad():
        place = x.detach().requires_grad_(True)
        total = potential(place, t, **kwargs).sum()
        (gradient,) = torch.autograd.grad(total, place, create_graph=differentiable)
    return gradient


def potential_velocity(potential: Potential, cost: ConvexCost) -> Callable[..., Tensor]:
    """The model (x, t) -> ∇c*(∇φ): a velocity on the linear path, as `sample` takes it."""

    def model(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        return cost.velocity(gradient_of(potential, x, t, **kwargs))

    return model


def convex_flow_loss(
    potential: Potential, cost: ConvexCost, base: Tensor, data: Tensor, t: Tensor, **kwargs: Any
) -> Tensor:
    """c*(∇φ) − (x_1 − x_0)·∇φ + c(x_1 − x_0) at x_t = (1 − t)·x_0 + t·x_1 of each pair, shape (B,); it is ≥ 0.

    Zero exactly where x_1 − x_0 = ∇c*(∇φ) (Fenchel and Young). With p = 2 it is ½·|x_1 − x_0 − ∇φ|².

    Parameters
    ----------
    potential : callable (x, t, **kwargs) -> (B,)
        Twice differentiable.
    cost : ConvexCost
        `PowerCost`, or one of your own.
    base, data : Tensor (B, ...)
        Pairs of a coupling.
    t : Tensor (B,)
    """
    if base.shape != data.shape or t.shape != data.shape[:1]:
        raise ValueError(
            f"base and data must have one shape (B, ...) and t (B,), got {tuple(base.shape)}, {tuple(data.shape)} "
            f"and {tuple(t.shape)}"
        )
    times = match(t, data)
    x, way = (1.0 - times) * base + times * data, data - base
    gradient = gradient_of(potential, x, t, differentiable=True, **kwargs)
    return cost.conjugate(gradient) - (way * gradient).flatten(1).sum(1) + cost.value(way)
