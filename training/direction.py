"""The direction of the velocity as a further loss, on top of any objective on a Gaussian path.

Yao, Yang and Wang, "Reconstruction vs. generation: taming optimization dilemma in latent diffusion models"
(LightningDiT), CVPR 2025 (arXiv:2501.01423), adds it with weight 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pathline.interpolants import convert

from .losses import GaussianObjective, Model, direction_error, regression_target


def loss_with_direction(
    objective: GaussianObjective,
    weight: float,
    model: Model,
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Objective + weight·(1 − cosine of the velocity over the channels) of each sample, (B,), at one model call.

    The model may predict anything; its output is converted to the velocity. With weight 0 it is the objective itself.
    """
    if weight == 0.0:
        return objective(model, data, noise, t, model_kwargs)
    calls: list[tuple[Tensor, Tensor]] = []

    def kept(x: Tensor, label: Tensor, **kwargs: Any) -> Tensor:
        calls.append((x, model(x, label, **kwargs)))
        return calls[-1][1]

    losses = objective(kept, data, noise, t, model_kwargs)
    _, target, point = regression_target(objective.path, "velocity", data, noise, t)
    x, output = calls[0]
    if objective.prediction != "velocity":
        output = convert(x, output, point, objective.prediction, "velocity")
    return losses + weight * direction_error(output, target).to(losses)
