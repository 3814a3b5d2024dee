"""Regression losses on Gaussian paths: (target, per-sample weight, time density, reduction over a sample).

Nothing here draws a random number or averages over the batch. The caller supplies data, noise and times, and
gets one number per sample; so the same inputs give the same losses on any batch split, and couplings,
antithetic pairs or other densities are a matter of what is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath, PathPoint, check_name, convert, path_from_config
from pathline.interpolants.path import PREDICTIONS
from pathline.interpolants.tensors import match

from .densities import TimeDensity, UniformTime
from .weights import LossWeight, Unweighted, error_factor

Model = Callable[..., Tensor]

REDUCTIONS = ("mean", "sum", "half_sum")


def regression_target(
    path: GaussianPath, prediction: str, data: Tensor, noise: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, PathPoint]:
    """State x_t, the value a perfect `prediction` would be regressed onto there, and the path at `t`.

    Parameters
    ----------
    path : GaussianPath
    prediction : {"data", "noise", "velocity", "v", "score"}
    data, noise : Tensor, shape (B, ...)
        A data sample and a standard normal of the same shape.
    t : Tensor, shape (B,)
        Path times in [0, 1]; computed with in their own precision, then cast to the type of `data`.

    Returns
    -------
    x, target : Tensor, shape (B, ...)
    point : PathPoint
        Entries of shape (B,), on the device and in the type of `t`.

    Raises
    ------
    ValueError
        If shapes do not fit, a time is outside [0, 1], or the prediction is unknown.
    """
    check_name("prediction", prediction, PREDICTIONS)
    if data.shape != noise.shape:
        raise ValueError(f"data and noise must have one shape, got {tuple(data.shape)} and {tuple(noise.shape)}")
    if t.shape != data.shape[:1]:
        raise ValueError(f"t must have shape ({len(data)},), one time per sample, got {tuple(t.shape)}")
    point = path.at(t)
    # Broadcast over the axes of a sample, in the sample's own type and device.
    signal, noise_scale, signal_rate, noise_rate = (match(entry, data) for entry in point)
    x = signal * data + noise_scale * noise
    if prediction == "data":
        return x, data, point
    if prediction == "noise":
        return x, noise, point
    if prediction == "velocity":
        return x, signal_rate * data + noise_rate * noise, point
    if prediction == "v":
        return x, signal * noise - noise_scale * data, point
    return x, -noise / noise_scale, point


def squared_error(output: Tensor, target: Tensor, reduction: str = "mean", mask: Tensor | None = None) -> Tensor:
    """Squared error of each sample, reduced over its own axes in float32 or wider: (B, ...) -> (B,).

    `reduction` is "mean" over the entries of a sample, their "sum", or "half_sum". With a `mask` of 0 and 1, of a shape
    that broadcasts to theirs, only entries where it is 1 count; a sample without any has loss 0.

    Raises
    ------
    ValueError
        If the shapes differ or the reduction is unknown.
    """
    check_name("reduction", reduction, REDUCTIONS)
    if output.shape != target.shape:
        raise ValueError(f"the model returned shape {tuple(output.shape)} for a target of {tuple(target.shape)}")
    wide = torch.promote_types(torch.promote_types(output.dtype, target.dtype), torch.float32)
    difference = output.to(wide) - target.to(wide)
    if mask is not None:
        kept = _expanded(mask, output)
        difference = difference.masked_fill(~kept, 0.0)
        if reduction == "mean":
            return difference.square().flatten(1).sum(1) / kept.flatten(1).sum(1).clamp(min=1)
    square = difference.square().flatten(1)
    if reduction == "mean":
        return square.mean(1)
    return square.sum(1) if reduction == "sum" else 0.5 * square.sum(1)


def _expanded(mask: Tensor, output: Tensor) -> Tensor:
    """A mask as booleans of the shape of the output; ValueError if it has another number of axes or does not fit."""
    sizes = zip(mask.shape, output.shape, strict=False)
    if mask.ndim != output.ndim or any(size not in (1, whole) for size, whole in sizes):
        raise ValueError(f"mask must broadcast to {tuple(output.shape)}, with as many axes, got {tuple(mask.shape)}")
    return mask.to(output.device, torch.bool).expand(output.shape)


def direction_error(output: Tensor, target: Tensor) -> Tensor:
    """1 - cosine between output and target over the channels, averaged over the other axes: (B, C, ...) -> (B,).

    The velocity direction loss of LightningDiT (Yao, Yang and Wang 2025), there added to the squared error as it is.
    Alone it is least where the output points along E[target / |target|], so the sum has a slightly shifted optimum.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if output.shape != target.shape:
        raise ValueError(f"the model returned shape {tuple(output.shape)} for a target of {tuple(target.shape)}")
    wide = torch.promote_types(torch.promote_types(output.dtype, target.dtype), torch.float32)
    cosine = torch.nn.functional.cosine_similarity(output.to(wide), target.to(wide), dim=1, eps=1e-8)
    return 1 - cosine.reshape(len(output), -1).mean(1)


@dataclass(frozen=True)
class GaussianObjective:
    """weight * |model's target - target|^2 of each sample, on a Gaussian path.

    Parameters
    ----------
    path : GaussianPath
    prediction : {"data", "noise", "velocity", "v", "score"}
        What the model returns (for an EDM-preconditioned network: data).
    target : str, optional
        In which quantity the error is measured; by default the prediction itself. With another one the output
        is converted first, for instance a data prediction under the velocity loss.
    weight : LossWeight
    density : TimeDensity
        From which the caller draws times through `times`; it enters the loss only where the weight is stated
        in log-SNR.
    reduction : {"mean", "sum", "half_sum"}
        Over the entries of one sample.

    Raises
    ------
    ValueError
        If a name is unknown, or the weight or the density is not an object of its class.
    """

    path: GaussianPath
    prediction: str
    target: str | None = None
    weight: LossWeight = field(default_factory=Unweighted)
    density: TimeDensity = field(default_factory=UniformTime)
    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_name("prediction", self.prediction, PREDICTIONS)
        check_name("target", self.measured, PREDICTIONS)
        check_name("reduction", self.reduction, REDUCTIONS)
        for name, kind in (("weight", LossWeight), ("density", TimeDensity)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"{name} must be a {kind.kind}, such as {kind.__name__}.by_name(...), got {getattr(self, name)!r}"
                )

    @property
    def measured(self) -> str:
        """The quantity whose error is measured."""
        return self.prediction if self.target is None else self.target

    @property
    def interval(self) -> tuple[float, float]:
        """Times on which both what the model returns and what is measured are bounded."""
        first, second = self.path.train_interval(self.prediction), self.path.train_interval(self.measured)
        return max(first[0], second[0]), min(first[1], second[1])

    def times(self, uniforms: Tensor) -> Tensor:
        """Training times for uniforms in (0, 1), float64, within `interval`."""
        return self.density.times(uniforms, self.path, self.interval)

    def __call__(
        self,
        model: Model,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Loss of each sample, shape (B,).

        Parameters
        ----------
        model : callable (x, t, **model_kwargs) -> output
            In pathline's convention; t arrives in the type of `data`.
        data, noise : Tensor, shape (B, ...)
        t : Tensor, shape (B,)
            Path times; float64 keeps the coefficients exact whatever the type of `data`.
        mask : Tensor, optional
            1 where entries count and 0 where they are padding, as in `squared_error`; the model is told by
            `model_kwargs` if it is to know.
        """
        x, target, point = regression_target(self.path, self.measured, data, noise, t)
        label = t.to(device=data.device, dtype=torch.promote_types(data.dtype, torch.float32))
        output = model(x, label, **(model_kwargs or {}))
        if self.measured != self.prediction:
            output = convert(x, output, point, self.prediction, self.measured)
        error = squared_error(output, target, self.reduction, mask)
        return self.sample_weight(t, point).to(error) * error

    def sample_weight(self, t: Tensor, point: PathPoint | None = None) -> Tensor:
        """Weight of the measured error at times `t`, of their shape.

        Raises
        ------
        ValueError
            At an end of the path where the weight has no value; times from `times` are inside.
        """
        point = self.path.at(t) if point is None else point
        level_density = self.level_density(t, point) if self.weight.needs_level_density else None
        return self._defined(self.weight(point, self.measured, level_density), t)

    def _defined(self, values: Tensor, t: Tensor) -> Tensor:
        if bool(values.isnan().any()):
            at = float(torch.as_tensor(t).expand_as(values)[values.isnan()][0])
            raise ValueError(
                f"the {self.weight.name!r} weight of {self.measured!r} has no value at time t={at:g}; t must lie "
                "between the ends 0 and 1 of the path"
            )
        return values

    def level_density(self, t: Tensor, point: PathPoint | None = None) -> Tensor:
        """Density of the log-SNR 2 lam at the times `t` under the time density: pi(t) a s / (2 W)."""
        point = self.path.at(t) if point is None else point
        return self.density.density(t, self.path) * point.signal * point.noise / (2 * point.wronskian)

    def effective_weight(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log-SNR at `t`, and there the weight w of the objective written as (1/2) int w |noise error|^2 d log-SNR.

        Two objectives with the same w (up to a factor) have the same minimiser and the same expected loss,
        whatever their predictions and densities (Kingma and Gao 2023, section 2). Errors as in `sample_weight`.
        """
        point = self.path.at(t)
        on_noise = self.sample_weight(t, point) * error_factor(point, self.measured)
        return 2 * point.lam, self._defined(on_noise * self.level_density(t, point), t)

    def config(self) -> dict[str, Any]:
        """Everything as a dictionary for JSON; `objective_from_config` makes the objective again."""
        return {
            "path": self.path.config(),
            "prediction": self.prediction,
            "target": self.target,
            "weight": self.weight.config(),
            "density": self.density.config(),
            "reduction": self.reduction,
        }


def objective_from_config(config: Mapping[str, Any]) -> GaussianObjective:
    """Make an objective from what `GaussianObjective.config` returned."""
    return GaussianObjective(
        path=path_from_config(config["path"]),
        prediction=config["prediction"],
        target=config.get("target"),
        weight=LossWeight.from_config(config.get("weight", {"name": "none"})),
        density=TimeDensity.from_config(config.get("density", {"name": "uniform"})),
        reduction=config.get("reduction", "mean"),
    )


def per_sample_loss(
    model: Model,
    path: GaussianPath,
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    *,
    prediction: str = "velocity",
    target: str | None = None,
    weight: LossWeight | None = None,
    reduction: str = "mean",
    model_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Loss of each sample, shape (B,), without making an objective first; see `GaussianObjective`."""
    objective = GaussianObjective(path, prediction, target, weight or Unweighted(), reduction=reduction)
    return objective(model, data, noise, t, model_kwargs)
