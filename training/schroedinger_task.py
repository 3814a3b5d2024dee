"""Schrödinger bridges from noise to images in the trainer, and trained ones as models of the samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import LinearPath, StochasticInterpolant
from pathline.interpolants.tensors import match

from .conventions import TRAIN_STEPS
from .densities import TimeDensity
from .interpolant_losses import interpolant_target
from .losses import squared_error
from .schroedinger import SchroedingerBridge
from .tasks import Samples, Task, flow_sampling

_MARGIN = 1e-2
"""Distance from the ends at which the rate of the latent noise, infinite there, is taken for the rest of the way."""


class SchroedingerModel:
    """A trained Schrödinger bridge (x, t, **conditions) -> velocity of the flow with its marginals.

    The network has two outputs per channel, E[x_1 − x_0 | x] and E[z | x] for x_t = (1 − t)·x_0 + t·x_1 + γ(t)·z, which
    are bounded at all times; velocity, score and drift are made of them.

    Parameters
    ----------
    network : callable (x, label, **kwargs) -> (B, 2C, ...)
        Its label is 1000 (1 − t).
    sigma : float > 0
        Of the Brownian motion.

    Attributes
    ----------
    path : LinearPath
        On which the flow is handed on, as of any interpolant.
    prediction : "velocity"
    """

    prediction = "velocity"

    def __init__(self, network: Callable[..., Tensor], sigma: float) -> None:
        self.network = network
        self.bridge = SchroedingerBridge(sigma, "exact")
        self.path = LinearPath()

    def channels(self, x: Tensor, t: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """E[x_1 − x_0 | x] and E[z | x], each (B, C, ...)."""
        rate, latent = self.network(x, (1.0 - t) * TRAIN_STEPS, **kwargs).to(x.dtype).chunk(2, 1)
        return rate, latent

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Velocity (B, C, ...)."""
        rate, latent = self.channels(x, t, **kwargs)
        times = t.to(torch.float64).clamp(_MARGIN, 1.0 - _MARGIN)
        return rate + match(self.bridge.interpolant.latent.rate(times), x) * latent

    def score(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """∇log p_t, (B, C, ...), for times inside (0, 1)."""
        latent = self.channels(x, t, **kwargs)[1]
        return -latent / match(self.bridge.interpolant.latent.value(t.to(torch.float64)), x)

    @property
    def stochastic(self) -> StochasticSchroedinger:
        """The bridge itself, for `bridge-posterior`."""
        return StochasticSchroedinger(self)


class StochasticSchroedinger:
    """The bridge as a process with noise: a data prediction on the Brownian bridge, x + (1 − t)·drift.

    `sample(model.stochastic, start, method="bridge-posterior", grid="time", nfe=...)` draws from it: between two times
    the state moves as a Brownian motion that is pinned at the predicted data.

    Attributes
    ----------
    path : BrownianBridge
    prediction : "data"
    """

    prediction = "data"

    def __init__(self, model: SchroedingerModel) -> None:
        self.model = model
        self.path: StochasticInterpolant = model.bridge.interpolant

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """E[x_1 | x]: the infinite parts of velocity and score at both ends cancel."""
        times = t.to(torch.float64).clamp(0.0, 1.0)
        rate, latent = self.model.channels(x, t, **kwargs)
        return x + match(1.0 - times, x) * rate - match(self.model.bridge.interpolant.latent.value(times), x) * latent


class SchroedingerTask(Task):
    """Velocity and score of a Schrödinger bridge together, in one network (Tong et al. 2024, [SF]²M).

    Both are regressed as bounded quantities, E[x_1 − x_0 | x] and E[z | x]; the second is the paper's score with its
    weight. Starts and images come coupled by the entropic plan.

    Parameters
    ----------
    sigma : float > 0
    density : TimeDensity
        Of the times.
    """

    takes_latent, takes_noise = True, False
    path = LinearPath()
    prediction = "velocity"

    def __init__(self, sigma: float, density: TimeDensity) -> None:
        self.bridge, self.density = SchroedingerBridge(sigma, "exact"), density
        self.title = f"velocity and score of the Schrödinger bridge of variance {sigma**2:g}"

    @property
    def interval(self) -> tuple[float, float]:
        """All times."""
        return 0.0, 1.0

    def times(self, uniforms: Tensor) -> Tensor:
        """Those of the density."""
        return self.density.times(uniforms, None, self.interval)

    def wrap(self, network: Callable[..., Tensor]) -> SchroedingerModel:
        """The flow of the bridge."""
        return SchroedingerModel(network, self.bridge.sigma)

    def losses(self, model: SchroedingerModel, samples: Samples) -> Tensor:
        """Sum of the two squared errors."""
        assert samples.latent is not None
        given = (samples.start, samples.data, samples.latent, samples.times)
        x, rate, _ = interpolant_target(self.bridge.interpolant, "mean_rate", *given)
        found, latent = model.channels(x, samples.times.to(x.device, x.dtype), **samples.conditions)
        return squared_error(found, rate) + squared_error(latent, samples.latent)

    def level(self, t: float) -> str:
        """Weights of start, data and latent noise."""
        base, data, latent, *_ = (float(entry) for entry in self.bridge.interpolant.at(t))
        return f"start {base:.4g}, data {data:.4g}, latent noise {latent:.4g}"

    def sampling(self, method: str | None, nfe: int) -> dict[str, Any]:
        """Of the flow."""
        return flow_sampling(method, nfe)

    def card(self) -> dict[str, Any]:
        """The bridge, and the path and prediction of its flow."""
        return {
            "path": self.path.config(),
            "prediction": self.prediction,
            "convention": "schroedinger",
            "schroedinger": {"sigma": self.bridge.sigma},
        }

    def config(self) -> dict[str, Any]:
        """The bridge and the density of times."""
        return {"schroedinger": {"sigma": self.bridge.sigma}, "density": self.density.config()}
