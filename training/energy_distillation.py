"""Distillation of a score into an energy, whose law can then be composed and weighed.

Thornton et al. 2025, "Composition and control with distilled energy diffusion models and sequential Monte Carlo",
arXiv:2502.12786: the gradient field −∇E closest to a teacher's score. A teacher that is no gradient is thereby
projected on its gradient part; what is left of the loss is the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import PREDICTIONS, GaussianPath, unknown_name
from pathline.interpolants.conversions import convert
from pathline.samplers.smc import EnergyModel


def energy_distillation_loss(
    energy: Callable[..., Tensor],
    teacher: Callable[..., Tensor],
    path: GaussianPath,
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    *,
    prediction: str = "noise",
    model_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Loss noise²·|−∇E − score|² of each sample, the mean over its entries: in noise predictions, with weight one.

    Parameters
    ----------
    energy : callable (x, t, **kwargs) -> (B,)
        Twice differentiable; its parameters are trained (`torch.backward` of the loss differentiates twice).
    teacher : callable (x, t, **kwargs) -> (B, ...)
        Its prediction is not differentiated.
    path : GaussianPath
    data, noise : Tensor (B, ...)
    t : Tensor (B,)
        Times with noise and signal above 0.
    prediction : {"data", "noise", "velocity", "v", "score"}
        What the teacher returns.
    model_kwargs : mapping, optional
        For both.

    Returns
    -------
    Tensor (B,)

    Raises
    ------
    ValueError
        Unknown prediction, or a time at which the teacher's score is not defined.
    """
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)
    kwargs, state, point = dict(model_kwargs or {}), path.sample(data, noise, t), path.at(t)
    with torch.no_grad():
        target = convert(state, teacher(state, t, **kwargs), point, prediction, "noise")
    with torch.enable_grad():
        score = EnergyModel(energy, path)(state, t, **kwargs)
    own = convert(state, score, point, "score", "noise")
    return (own - target).square().flatten(1).mean(1)
