"""How a network's own time label and output relate to a path: the conventions of stock diffusers schedulers.

flow        label 1000 (1 - t), output noise - data (linear path, velocity)
index       label N (1 - t) - 1, the training index; output noise, v or data (variance-preserving paths)
edm         input x / sqrt(sigma^2 + sigma_data^2), label log(sigma) / 4; output the preconditioned residual
time        label 1000 (1 - t), output as pathline names it (everything no stock scheduler serves)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, EDMPath, GaussianPath, LinearPath, check_name
from pathline.samplers import WrappedModel, discrete_labels, edm_preconditioned, reversed_flow
from pathline.samplers.wrappers import training_index

CONVENTIONS = ("flow", "index", "edm", "time")
TRAIN_STEPS = 1000
_PREDICTION_TYPES = {"noise": "epsilon", "v": "v_prediction", "data": "sample"}
_MAX_BETA = 0.999


class StockScheduler(NamedTuple):
    """A scheduler of diffusers by class name, with its settings."""

    class_name: str
    settings: dict[str, Any]


def choose_convention(path: GaussianPath, prediction: str, preconditioned: bool = False) -> str:
    """Pick the convention under which a stock scheduler can sample such a network, else "time".

    Raises
    ------
    ValueError
        If EDM preconditioning is asked for with another path or prediction.
    """
    if preconditioned:
        if prediction != "data" or not isinstance(path, EDMPath):
            raise ValueError(
                f"EDM preconditioning makes a data prediction on the path 'edm', got {prediction!r} on {path.name!r}"
            )
        return "edm"
    if isinstance(path, LinearPath) and prediction == "velocity":
        return "flow"
    if prediction in _PREDICTION_TYPES and preserves_variance(path):
        return "index"
    return "time"


def preserves_variance(path: GaussianPath) -> bool:
    """Tell whether signal^2 + noise^2 = 1 at all times."""
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    return bool((path.signal(t).square() + path.noise(t).square() - 1).abs().max() < 1e-9)


def wrap_network(
    network: Callable[..., Tensor], path: GaussianPath, prediction: str, convention: str, sigma_data: float = 0.5
) -> WrappedModel:
    """Make a model(x, t, class_labels=None) in pathline's convention out of a network in its own.

    Raises
    ------
    ValueError
        If the convention is unknown.
    """
    check_name("convention", convention, CONVENTIONS)
    if convention == "flow":
        return reversed_flow(network, float(TRAIN_STEPS), path)
    if convention == "edm":
        assert isinstance(path, EDMPath)
        return edm_preconditioned(network, path, sigma_data)
    if convention == "index":
        if isinstance(path, DiscretePath):
            return discrete_labels(network, path, prediction)
        return WrappedModel(network, path, prediction, lambda t: training_index(t, TRAIN_STEPS))
    return WrappedModel(network, path, prediction, lambda t: (1.0 - t) * TRAIN_STEPS)


def stock_scheduler(
    path: GaussianPath, prediction: str, convention: str, sigma_data: float = 0.5, *, labelled: bool = False
) -> StockScheduler | None:
    """Scheduler of diffusers under which a pipeline samples such a network; None if there is none.

    `labelled` asks for one that works in the pipeline that hands on class labels (it scales inputs).
    """
    if convention == "flow":
        if not labelled:
            return StockScheduler("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": TRAIN_STEPS})
        settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
        return StockScheduler("DPMSolverMultistepScheduler", {"num_train_timesteps": TRAIN_STEPS, **settings})
    if convention == "edm":
        assert isinstance(path, EDMPath)
        levels = {"sigma_min": path.sigma_min, "sigma_max": path.sigma_max, "rho": path.rho}
        return StockScheduler("EDMEulerScheduler", {**levels, "sigma_data": sigma_data})
    if convention == "index":
        betas = training_betas(path)
        settings = {
            "num_train_timesteps": len(betas),
            "trained_betas": betas,
            "prediction_type": _PREDICTION_TYPES[prediction],
            "clip_sample": False,
        }
        return StockScheduler("DDPMScheduler", settings)
    return None


def training_betas(path: GaussianPath) -> list[float]:
    """Betas of a variance-preserving path at its training indices (1000 of them on a continuous path).

    A beta is at most 0.999, so that a path with signal 0 at its start stays a schedule.
    """
    steps = path.steps if isinstance(path, DiscretePath) else TRAIN_STEPS
    index = torch.arange(steps, dtype=torch.float64)
    power = path.signal(1 - (index + 1) / steps).square()
    before = torch.cat([torch.ones(1, dtype=torch.float64), power[:-1]])
    return [float(beta) for beta in (1 - power / before).clamp(max=_MAX_BETA)]
