"""Training on biased data with the help of a small set that is not.

Let w_t(x) = p_reference,t(x) / p_observed,t(x) be the ratio of the densities of noised data. The score of the
reference law is that of the observed one plus grad log w_t, so the regression (Kim et al. 2024, "Training unbiased
diffusion models from biased dataset", TIW-DSM)

    E_observed  w_t(x_t) | score model - (grad log p(x_t | data) + grad log w_t(x_t)) |^2

has the reference score as its minimum. In the data prediction the correction is + noise^2 / signal grad log w_t (the
official code has the gradient of the discriminator itself, with the other sign). The ratio comes from a classifier of
noised data that tells the reference set from the biased one. Away from the data the two laws merge: w_t is close to 1
there, while a ratio of clean data, kept at all times, is far from it and noisy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath

from .losses import GaussianObjective, Model, regression_target

_MOST_LOGIT = math.log(1e5)


def discrimination_loss(logits: Tensor, is_reference: Tensor, share: float = 0.5) -> Tensor:
    """Cross-entropy of telling the reference set from the biased one, balanced, of shape (B,).

    Parameters
    ----------
    logits : Tensor, shape (B,)
        Of "reference", for noised data at their times.
    is_reference : bool Tensor, shape (B,)
    share : float in (0, 1)
        Share of reference samples in the batches; both sets then count for one half.

    Raises
    ------
    ValueError
        If the share is out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"share of the reference set must lie in (0, 1), got {share!r}")
    target = is_reference.to(logits)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return loss * torch.where(is_reference, 0.5 / share, 0.5 / (1 - share)).to(logits)


def log_ratio(logits: Tensor, share: float) -> Tensor:
    """Log of p_reference / p_observed from a balanced discriminator's logits, of their shape.

    With the share s of reference samples in the observed data, p_observed = s p_reference + (1 - s) p_biased and
    w = 1 / (s + (1 - s) e^-logit): e^logit for s = 0, twice the discriminator for s = 1/2.
    """
    bounded = logits.clamp(-_MOST_LOGIT, _MOST_LOGIT)
    if share == 0:
        return bounded
    return -torch.logaddexp(torch.full_like(bounded, math.log(share)), math.log1p(-share) - bounded)


class Tilted(NamedTuple):
    """Data and noise with the same state and the corrected targets, each (B, ...), and the weights, (B,)."""

    data: Tensor
    noise: Tensor
    weight: Tensor


def tilt(
    path: GaussianPath, discriminator: Model, data: Tensor, noise: Tensor, t: Tensor, share: float = 0.0
) -> Tilted:
    """Replace data and noise so that every prediction's target gets its part of the correction.

    The pair data + noise_level^2 / signal g, noise - noise_level g with g = grad log w_t(x_t) has the same state, and
    whatever prediction is made from it is corrected: score by + g, velocity by + noise_level W / signal g.

    Parameters
    ----------
    discriminator : callable (x, t) -> logits (B,)
        Its parameters get no gradient.
    share : float in [0, 1)
        Share of reference samples in the observed data.
    """
    x, _, point = regression_target(path, "data", data, noise, t)
    label = t.to(device=data.device, dtype=torch.promote_types(data.dtype, torch.float32))
    with torch.enable_grad():
        place = x.detach().requires_grad_()
        log_weight = log_ratio(discriminator(place, label), share)
        (gradient,) = torch.autograd.grad(log_weight.sum(), place)
    shape = (-1, *(1,) * (data.ndim - 1))
    signal, level = (entry.to(data).reshape(shape) for entry in (point.signal, point.noise))
    return Tilted(data + level.square() / signal * gradient, noise - level * gradient, log_weight.detach().exp())


@dataclass(frozen=True)
class BiasedDataObjective:
    """The loss of a Gaussian objective on biased data, with a time-dependent density ratio (TIW-DSM).

    Parameters
    ----------
    objective : GaussianObjective
    share : float in [0, 1)
        Share of reference samples in the data that are trained on; 0 if these are the biased ones alone.

    Raises
    ------
    ValueError
        If the share is out of range.
    """

    objective: GaussianObjective
    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share of the reference set must lie in [0, 1), got {self.share!r}")

    def __call__(
        self,
        model: Model,
        discriminator: Model,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Loss of each sample, shape (B,); times must have signal above 0.

        Parameters
        ----------
        model : callable (x, t, **model_kwargs) -> output
        discriminator : callable (x, t) -> logits (B,) of "reference", balanced; see `discrimination_loss`.
        data, noise : Tensor, shape (B, ...)
        t : Tensor, shape (B,)
        """
        tilted = tilt(self.objective.path, discriminator, data, noise, t, self.share)
        losses = self.objective(model, tilted.data, tilted.noise, t, model_kwargs)
        return tilted.weight.to(losses) * losses
