"""c-rectified flow in the trainer: a flow that is ∇c*(∇φ) of a scalar potential, and trained ones as models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pathline.interpolants import LinearPath

from .conventions import TRAIN_STEPS
from .convex_flow import ConvexCost, PowerCost, convex_flow_loss, potential_velocity
from .densities import TimeDensity
from .tasks import Samples, Task, flow_sampling


class PotentialModel:
    """A network f as the potential φ = Σ x·f(x, t), and its flow (x, t, **conditions) -> ∇c*(∇φ).

    Parameters
    ----------
    network : callable (x, label, **kwargs) -> (B, C, ...)
        Its label is 1000 (1 − t). Its output is not the velocity: the potential is what it parametrises.
    cost : ConvexCost

    Attributes
    ----------
    path : LinearPath
    prediction : "velocity"
    """

    prediction = "velocity"

    def __init__(self, network: Callable[..., Tensor], cost: ConvexCost) -> None:
        self.network, self.cost = network, cost
        self.path = LinearPath()
        self._velocity = potential_velocity(self.potential, cost)

    def potential(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """φ, of shape (B,)."""
        return (x * self.network(x, (1.0 - t) * TRAIN_STEPS, **kwargs).to(x.dtype)).flatten(1).sum(1)

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Velocity (B, C, ...)."""
        return self._velocity(x, t, **kwargs)


class ConvexFlowTask(Task):
    """The loss of a c-rectified flow (Liu 2022), per entry of a sample.

    Parameters
    ----------
    cost : PowerCost
    density : TimeDensity
        Of the times.
    """

    takes_noise = False
    path = LinearPath()
    prediction = "velocity"

    def __init__(self, cost: PowerCost, density: TimeDensity) -> None:
        self.cost, self.density = cost, density
        self.title = f"potential of a flow for the convex cost |x|^{cost.power:g}"

    @property
    def interval(self) -> tuple[float, float]:
        """All times."""
        return 0.0, 1.0

    def times(self, uniforms: Tensor) -> Tensor:
        """Those of the density."""
        return self.density.times(uniforms, self.path, self.interval)

    def wrap(self, network: Callable[..., Tensor]) -> PotentialModel:
        """The flow of the potential."""
        return PotentialModel(network, self.cost)

    def losses(self, model: PotentialModel, samples: Samples) -> Tensor:
        """c*(∇φ) − (x_1 − x_0)·∇φ + c(x_1 − x_0)."""
        data, start, times, conditions, _ = samples
        label = times.to(data.device, torch.promote_types(data.dtype, torch.float32))
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no second derivative
            loss = convex_flow_loss(model.potential, self.cost, start, data, label, **conditions)
        return loss / data[0].numel()

    def level(self, t: float) -> str:
        """Signal and noise."""
        return f"signal {t:.4g}, noise {1 - t:.4g}"

    def sampling(self, method: str | None, nfe: int) -> dict[str, Any]:
        """Of the flow."""
        return flow_sampling(method, nfe)

    def card(self) -> dict[str, Any]:
        """The cost, and the path and prediction of its flow."""
        return {
            "path": self.path.config(),
            "prediction": self.prediction,
            "convention": "potential",
            "potential": {"power": self.cost.power},
        }

    def config(self) -> dict[str, Any]:
        """The cost and the density of times."""
        return {"convex_cost": {"power": self.cost.power}, "density": self.density.config()}
