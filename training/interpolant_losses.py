"""Regression losses on stochastic interpolants, with antithetic pairs.

The state is x_t = base(t) x0 + data(t) x1 + latent(t) z with any coupling of x0 and x1. What a network may learn,
and what it is regressed onto (Albergo, Boffi and Vanden-Eijnden, "Stochastic interpolants: a unifying framework for
flows and diffusions"; the names are those of `Channels`):

    velocity    b = E[d x_t/dt | x]        base' x0 + data' x1 + latent' z
    mean_rate   E[d I_t/dt | x]            base' x0 + data' x1
    score       s = grad log p_t           -z / latent      (one-sided without latent noise: -x0 / base)
    latent      eta_z = E[z|x]             z                (the paper's denoiser)
    base, data  E[x0|x], E[x1|x]           x0, x1

The mirror interpolant x_t = x1 + latent z has no base and one quantity to learn, as score, latent or velocity.

Near the ends the rate of a Brownian latent and 1 / latent grow without bound. At a pair of states I_t + latent z,
I_t - latent z with opposite noises the unbounded parts of the two gradients cancel to first order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import InterpolantPoint, StochasticInterpolant, ZeroLatent, check_name
from pathline.interpolants.tensors import match

from .densities import TimeDensity, UniformTime
from .losses import REDUCTIONS, Model, squared_error
from .weights import LatentPower

INTERPOLANT_PREDICTIONS = ("velocity", "mean_rate", "score", "latent", "base", "data")
FORMS = ("squared", "linear")
_MARGIN = 1e-3


def interpolant_target(
    interpolant: StochasticInterpolant, prediction: str, base: Tensor, data: Tensor, latent: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, InterpolantPoint]:
    """State x_t, the value a perfect `prediction` would be regressed onto there, and the interpolant at `t`.

    Parameters
    ----------
    interpolant : StochasticInterpolant
    prediction : {"velocity", "mean_rate", "score", "latent", "base", "data"}
    base, data, latent : Tensor, shape (B, ...)
        A pair and a standard normal of its shape.
    t : Tensor, shape (B,)
        Times in [0, 1]; computed with in their own precision, then cast to the type of `data`.

    Raises
    ------
    ValueError
        If shapes do not fit, a time is outside [0, 1], or the interpolant does not define the prediction.
    """
    check_prediction(interpolant, prediction)
    if not base.shape == data.shape == latent.shape:
        shapes = [tuple(entry.shape) for entry in (base, data, latent)]
        raise ValueError(f"base, data and latent must have one shape, got {shapes}")
    if t.shape != data.shape[:1]:
        raise ValueError(f"t must have shape ({len(data)},), one time per sample, got {tuple(t.shape)}")
    point = interpolant.at(t)
    wide = InterpolantPoint(*(match(entry, data) for entry in point))
    x = wide.base * base + wide.data * data + wide.latent * latent
    if prediction == "latent":
        return x, latent, point
    if prediction in ("base", "data"):
        return x, base if prediction == "base" else data, point
    if prediction == "score":
        target = -base / wide.base if isinstance(interpolant.latent, ZeroLatent) else -latent / wide.latent
        return x, target, point
    target = wide.base_rate * base + wide.data_rate * data
    if prediction == "velocity" and not isinstance(interpolant.latent, ZeroLatent):
        target = target + wide.latent_rate * latent
    return x, target, point


def check_prediction(interpolant: StochasticInterpolant, prediction: str) -> None:
    """Refuse a prediction that an interpolant does not define.

    Raises
    ------
    ValueError
        If the name is unknown, a score is asked for where no part of the state is Gaussian, the latent noise is
        asked for where there is none, or the base of a mirror interpolant.
    """
    check_name("prediction of an interpolant", prediction, INTERPOLANT_PREDICTIONS)
    without_latent = isinstance(interpolant.latent, ZeroLatent)
    if without_latent and (prediction == "latent" or (prediction == "score" and not interpolant.gaussian_base)):
        raise ValueError(
            f"an interpolant without latent noise has no {prediction} to learn; give it a latent coefficient, or "
            "choose velocity, base or data"
        )
    if interpolant.ends.name == "mirror" and prediction in ("base", "mean_rate"):
        raise ValueError(f"the mirror interpolant has no base, hence no {prediction}; choose score, latent or velocity")


def linear_error(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Squared error less the target's square, |output|^2 - 2 output.target, reduced as by `squared_error`.

    With reduction "half_sum" the |b|^2 / 2 - b.target of the paper: same gradient as the squared error, and finite
    expectation where that of the target's square is not. Negative at the optimum.
    """
    return squared_error(output, target, reduction) - squared_error(torch.zeros_like(target), target, reduction)


@dataclass(frozen=True)
class InterpolantObjective:
    """Loss of one prediction on a stochastic interpolant, per sample.

    Parameters
    ----------
    interpolant : StochasticInterpolant
    prediction : {"velocity", "mean_rate", "score", "latent", "base", "data"}
        What the model returns and is compared with; see the module.
    antithetic : bool
        Average over the pair of states with latent noises z and -z, at two model calls per sample.
    form : {"squared", "linear"}
        "linear" leaves out the target's own square, which no network changes; see `linear_error`.
    weight : LatentPower
        Of the error: power 2 on the score gives the loss of the latent noise.
    density : TimeDensity
        A law of the time itself (not of a log-SNR).
    reduction : {"mean", "sum", "half_sum"}
        Over the entries of one sample.
    margin : float in [0, 1/2)
        Distance that training times keep from an end at which the target is unbounded.

    Raises
    ------
    ValueError
        If a name is unknown, or the interpolant does not define the prediction or has no latent noise to pair.
    """

    interpolant: StochasticInterpolant
    prediction: str = "velocity"
    antithetic: bool = False
    form: str = "squared"
    weight: LatentPower = field(default_factory=LatentPower)
    density: TimeDensity = field(default_factory=UniformTime)
    reduction: str = "mean"
    margin: float = _MARGIN

    def __post_init__(self) -> None:
        check_prediction(self.interpolant, self.prediction)
        check_name("form", self.form, FORMS)
        check_name("reduction", self.reduction, REDUCTIONS)
        if self.antithetic and isinstance(self.interpolant.latent, ZeroLatent):
            raise ValueError("antithetic pairs differ in the sign of the latent noise, and this interpolant has none")
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"margin must lie in [0, 1/2), got {self.margin!r}")

    @property
    def interval(self) -> tuple[float, float]:
        """Training times: all of [0, 1] where the target is bounded, else `margin` away from the end."""
        ends = self.interpolant.at(torch.tensor([0.0, 1.0], dtype=torch.float64))
        if self.prediction == "score":
            scale = ends.base if isinstance(self.interpolant.latent, ZeroLatent) else ends.latent
            bounded = scale > 0
        elif self.prediction in ("velocity", "mean_rate"):
            size = ends.base_rate.abs() + ends.data_rate.abs()
            bounded = (size + ends.latent_rate.abs() if self.prediction == "velocity" else size).isfinite()
        else:
            return 0.0, 1.0
        first, last = (0.0 if end else self.margin for end in bounded.tolist())
        return first, 1.0 - last

    def times(self, uniforms: Tensor) -> Tensor:
        """Training times for uniforms in (0, 1), float64, within `interval`."""
        return self.density.times(uniforms, None, self.interval)

    def __call__(
        self,
        model: Model,
        base: Tensor,
        data: Tensor,
        latent: Tensor,
        t: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Loss of each sample, shape (B,).

        Parameters
        ----------
        model : callable (x, t, **model_kwargs) -> output
            t arrives in the type of `data`. Called twice for antithetic pairs.
        base, data, latent : Tensor, shape (B, ...)
            A coupled pair and a standard normal. Without latent noise `latent` plays no part, for the mirror
            interpolant `base` plays none; any tensor of the shape will do.
        t : Tensor, shape (B,)
        """
        label = t.to(device=data.device, dtype=torch.promote_types(data.dtype, torch.float32))
        error: Callable[[Tensor, Tensor, str], Tensor] = squared_error if self.form == "squared" else linear_error
        losses = []
        for noise in (latent, -latent) if self.antithetic else (latent,):
            x, target, point = interpolant_target(self.interpolant, self.prediction, base, data, noise, t)
            losses.append(error(model(x, label, **(model_kwargs or {})), target, self.reduction))
        loss = torch.stack(losses).mean(0)
        return self.weight(point.latent).to(loss) * loss
