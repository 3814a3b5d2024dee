"""Stochastic interpolants in the trainer: one-sided from noise, two-sided from noise or from a degraded image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from pathline.interpolants import (
    CosinePath,
    GaussianPath,
    LinearPath,
    StochasticInterpolant,
    ZeroLatent,
    check_name,
    interpolant_by_name,
    list_latents,
)
from pathline.samplers import WrappedModel

from .conventions import StockScheduler, choose_convention, stock_scheduler, wrap_network
from .interpolant_losses import InterpolantObjective
from .tasks import Samples, Task, flow_sampling

TRAINED_INTERPOLANTS = (
    "one_sided_linear",
    "one_sided_trigonometric",
    "linear",
    "trigonometric",
    "encoder_decoder",
)
"""Interpolants a run can learn; the mirror leads from images to images and makes nothing."""
_EQUAL_PATHS: dict[str, type[GaussianPath]] = {"linear": LinearPath, "trigonometric": CosinePath}
_NAMES_ON_PATHS = {"velocity": "velocity", "score": "score", "base": "noise", "data": "data"}


def make_interpolant(name: str, parameters: Mapping[str, Any]) -> StochasticInterpolant:
    """An interpolant of `TRAINED_INTERPOLANTS`; `parameters` are `latent` by name and what that takes.

    Raises
    ------
    ValueError
        If a name or a parameter is unknown, or the latent does not suit.
    """
    check_name("path of an interpolant", name, TRAINED_INTERPOLANTS)
    rest = dict(parameters)
    latent = rest.pop("latent", None)
    if latent is not None:
        check_name("latent of path_config", latent, list_latents())
    return interpolant_by_name(name, latent, **rest)


class InterpolantTask(Task):
    """A prediction on a stochastic interpolant.

    A one-sided interpolant without latent noise is a Gaussian path, sampled as such, whatever is predicted. On all
    others the velocity alone makes samples: an ordinary differential equation in time from the base, which every
    deterministic method for velocities follows; it is handed on as a velocity on the linear path.

    Parameters
    ----------
    objective : InterpolantObjective

    Raises
    ------
    ValueError
        If the prediction does not make samples.
    """

    def __init__(self, objective: InterpolantObjective) -> None:
        process = objective.interpolant
        self.objective = objective
        self.takes_latent = not isinstance(process.latent, ZeroLatent)
        self.takes_noise = process.gaussian_base and not self.takes_latent
        allowed = tuple(_NAMES_ON_PATHS) if self.takes_noise else ("velocity",)
        if objective.prediction not in allowed:
            which = "one-sided" if process.gaussian_base else "two-sided"
            noise = "with" if self.takes_latent else "without"
            raise ValueError(
                f"prediction {objective.prediction!r} alone makes no samples on a {which} interpolant {noise} latent "
                f"noise; allowed: {', '.join(allowed)}"
            )
        self.path: GaussianPath = _EQUAL_PATHS[process.ends.name]() if self.takes_noise else LinearPath()
        self.prediction = _NAMES_ON_PATHS[objective.prediction]
        self._convention = choose_convention(self.path, self.prediction)
        sides = "one-sided" if process.gaussian_base else "two-sided"
        self.title = (
            f"{objective.prediction} on the {sides} {process.ends.name} interpolant, latent {process.latent.name}"
        )

    @property
    def interval(self) -> tuple[float, float]:
        """That of the objective."""
        return self.objective.interval

    def times(self, uniforms: Tensor) -> Tensor:
        """Those of the objective."""
        return self.objective.times(uniforms)

    def wrap(self, network: Callable[..., Tensor]) -> WrappedModel:
        """The network in pathline's convention."""
        return wrap_network(network, self.path, self.prediction, self._convention)

    def losses(self, model: Any, samples: Samples) -> Tensor:
        """The objective from the start as base; without latent noise any tensor takes its place."""
        latent = samples.start if samples.latent is None else samples.latent
        return self.objective(model, samples.start, samples.data, latent, samples.times, samples.conditions)

    def level(self, t: float) -> str:
        """Weights of base, data and latent noise."""
        base, data, latent, *_ = (float(entry) for entry in self.objective.interpolant.at(t))
        return f"base {base:.4g}, data {data:.4g}, latent noise {latent:.4g}"

    def sampling(self, method: str | None, nfe: int) -> dict[str, Any]:
        """On two sides Heun's method in equal steps of time by default: others may take the base for pure noise."""
        if self.takes_noise:
            return super().sampling(method, nfe)
        return flow_sampling(method, nfe)

    def stock(self) -> StockScheduler | None:
        """The scheduler of the path on which it is sampled."""
        return stock_scheduler(self.path, self.prediction, self._convention)

    def card(self) -> dict[str, Any]:
        """Path, prediction and convention of the sampler."""
        return {"path": self.path.config(), "prediction": self.prediction, "convention": self._convention}

    def config(self) -> dict[str, Any]:
        """The interpolant and the parts of the objective."""
        objective, process = self.objective, self.objective.interpolant
        return {
            "interpolant": {
                "ends": process.ends.name,
                "gaussian_base": process.gaussian_base,
                "latent": {"name": process.latent.name, **asdict(process.latent)},  # type: ignore[call-overload]
            },
            "prediction": objective.prediction,
            "antithetic": objective.antithetic,
            "weight": asdict(objective.weight),
            "density": objective.density.config(),
            "margin": objective.margin,
        }
