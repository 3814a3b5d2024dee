"""Interpolants that are learned together with their velocity, so that the flow moves the samples less.

Albergo and Vanden-Eijnden, "Building normalizing flows with stochastic interpolants", ICLR 2023 (arXiv:2209.15571),
section 3.2: over velocities the loss E[½|v|² − ẋ·v] has the minimum −½ E|b|², b being the velocity of the
interpolant; what raises this minimum lowers the kinetic energy, down to the squared Wasserstein distance of the two
laws if the interpolant can follow their optimal transport. With a normal base and independent pairs the best
coefficients are known, `pathline.interpolants.KineticOptimalPath`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pathline.interpolants import FourierEnds
from pathline.interpolants.ends import fourier_waves
from pathline.interpolants.tensors import match

from .losses import Model

Draw = Callable[[int], tuple[Tensor, Tensor]]
"""Step to a batch of pairs, base and data (B, ...)."""


class LearnedEnds(nn.Module):
    """The coefficients of `FourierEnds` as float64 parameters, all 0 at first.

    Parameters
    ----------
    terms : int ≥ 1
        Of each end.

    Raises
    ------
    ValueError
        Without terms.
    """

    def __init__(self, terms: int = 4) -> None:
        super().__init__()
        if terms < 1:
            raise ValueError(f"terms must be at least 1, got {terms!r}")
        self.base_terms = nn.Parameter(torch.zeros(terms, dtype=torch.float64))
        self.data_terms = nn.Parameter(torch.zeros(terms, dtype=torch.float64))

    def forward(self, base: Tensor, data: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """State and its rate for pairs (B, ...) at times (B,), both differentiable in the coefficients."""
        waves, rates = fourier_waves(t.to(self.base_terms), len(self.base_terms))
        first, last = waves @ self.base_terms, waves @ self.data_terms
        x = match(1 - t + first, data) * base + match(t + last, data) * data
        rate = match(rates @ self.base_terms - 1, data) * base + match(rates @ self.data_terms + 1, data) * data
        return x, rate

    def ends(self) -> FourierEnds:
        """The coefficients as they are now, for a `StochasticInterpolant`."""
        return FourierEnds(tuple(self.base_terms.tolist()), tuple(self.data_terms.tolist()))


def kinetic_loss(model: Model, learned: LearnedEnds, base: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """½|v|² − ẋ·v of each sample at its state, (B,); the velocity is to lower it, the coefficients to raise it.

    At the best velocity its mean is −½ E|v|², and its gradient in the coefficients is that of −½ E|v|² (the velocity's
    own change does not count, being at a minimum).

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    if base.shape != data.shape or t.shape != data.shape[:1]:
        raise ValueError(
            f"base and data must have one shape (B, ...) and t (B,), got {tuple(base.shape)}, {tuple(data.shape)} "
            f"and {tuple(t.shape)}"
        )
    x, rate = learned(base, data, t)
    velocity = model(x, t.to(data))
    return (0.5 * velocity.square() - rate * velocity).flatten(1).sum(1)


def fit_ends(
    model: nn.Module,
    draw: Draw,
    *,
    terms: int = 4,
    steps: int = 2000,
    model_rate: float = 1e-3,
    ends_rate: float = 1e-3,
    generator: torch.Generator | None = None,
) -> FourierEnds:
    """Learn the coefficients and the velocity at once: a step down for the network, a step up for the coefficients.

    In the first tenth of the steps the network learns alone. The coefficients must be the slower of the two: against a
    velocity that is far from the best one their loss has no maximum.

    Parameters
    ----------
    model : nn.Module (x, t) -> velocity
        Changed in place; at the end it is the velocity of the interpolant that is returned.
    draw : callable step -> (base, data)
    terms : int
        Coefficients of each end.
    steps : int
    model_rate, ends_rate : float
        Learning rates of Adam; both fall to zero along half a cosine.
    generator : torch.Generator, optional
        For the times, on the CPU.

    Raises
    ------
    ValueError
        Without steps or terms.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps!r}")
    learned = LearnedEnds(terms)
    groups = [{"params": model.parameters(), "lr": model_rate}]
    groups.append({"params": learned.parameters(), "lr": ends_rate, "maximize": True})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        base, data = draw(step)
        learned.to(data.device).requires_grad_(10 * step >= steps)
        times = torch.rand(len(data), dtype=torch.float64, generator=generator).to(data.device)
        loss = kinetic_loss(model, learned, base, data, times).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return learned.ends()
