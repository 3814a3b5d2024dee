"""Schrödinger bridges without simulation: an entropic plan, Brownian bridges on its pairs, a velocity and a score.

Tong, Malkin, Fatras, Atanackovic, Zhang, Huguet, Wolf and Bengio, "Simulation-free Schrödinger bridges via score and
flow matching", AISTATS 2024 (arXiv:2307.03672). Among all processes between two laws the Schrödinger bridge is nearest
to a Brownian motion; its pairs are those of entropic transport with regularisation 2σ² under |x_0 − x_1|².
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pathline.interpolants import BrownianBridge, TransportCoupling

from .interpolant_losses import InterpolantObjective
from .weights import LatentPower


@dataclass(frozen=True)
class SchroedingerBridge:
    """The parts of a Schrödinger bridge of Brownian motion with variance σ² per unit of time.

    Parameters
    ----------
    sigma : float > 0
    plan : {"sinkhorn", "newton", "exact"}
        How minibatches are coupled; "exact" is the limit σ → 0, and closer to the bridge than an entropic plan where
        batches are so small that their own plan is far from that of the laws.

    Raises
    ------
    ValueError
        A σ that is not positive, or an unknown plan.
    """

    sigma: float = 1.0
    plan: str = "sinkhorn"

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma < float("inf"):
            raise ValueError(f"sigma={self.sigma!r} is not possible; it is a positive number")
        _ = self.coupling

    @property
    def coupling(self) -> TransportCoupling:
        """Pairs of two batches."""
        return TransportCoupling(self.plan, 2.0 * self.sigma**2)

    @property
    def interpolant(self) -> BrownianBridge:
        """(1 − t)·x_0 + t·x_1 + σ·√(t(1 − t))·z."""
        return BrownianBridge(self.sigma**2)

    @property
    def flow(self) -> InterpolantObjective:
        """Loss of the velocity, whose ordinary differential equation has the marginals of the bridge."""
        return InterpolantObjective(self.interpolant, "velocity")

    @property
    def score(self) -> InterpolantObjective:
        """Loss of the score ∇log p_t, weighted by σ²t(1 − t): the target then has variance 1 at all times."""
        return InterpolantObjective(self.interpolant, "score", weight=LatentPower(2.0))

    def drift(self, velocity: Tensor, score: Tensor, *, backward: bool = False) -> Tensor:
        """Drift of dX = drift·dt + σ·dW, forward in time or, `backward`, of the reversed process in the same time."""
        half = 0.5 * self.sigma**2 * score
        return velocity - half if backward else velocity + half
