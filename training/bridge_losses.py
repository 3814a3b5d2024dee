"""Bridge matching: regression losses on bridges between a source and its data, and those of the published models.

| model | bridge | the network predicts | loss |
|---|---|---|---|
| bridge matching | `BrownianBridge(diffusivity)` | drift, (data - x) / (1 - t) | squared |
| DDBM | `DiffusionBridge(reference)` | preconditioned residual | squared |
| I2SB | 1000 levels, `i2sb_levels` | (x - data) / std | squared |
| BBDM | 1000 levels, `bbdm_levels` | x - data; latent noise; source - data | absolute |
| ResShift | 15 levels, `resshift_levels` | data | squared |
| consecutive Brownian bridge | two of BBDM's that share their middle | x - data | absolute, times min(1 / noise, 5) |

A squared error has its minimum at E[data | what the network sees], an absolute one at the median. A network that is to
see the source takes it as a keyword; without it the minimiser averages over sources as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import (
    BrownianBridge,
    DiffusionBridge,
    GaussianPath,
    StochasticInterpolant,
    VPPath,
    check_name,
    unknown_name,
)
from pathline.interpolants.tensors import match

from .bridge_levels import BridgeLevels, bbdm_levels, i2sb_levels, resshift_levels
from .bridge_predictions import (
    BridgeCoefficients,
    BridgePreconditioned,
    BridgePrediction,
    DataPrediction,
    Displacement,
    Drift,
    ScaledDisplacement,
)
from .densities import TimeDensity, UniformTime
from .losses import Model, squared_error
from .weights import LatentPower

NORMS = ("squared", "absolute")
_REDUCTIONS = ("mean", "sum")
_MARGIN = 1e-3
_DDBM_MARGIN = 1e-4


@dataclass(frozen=True)
class BridgeObjective:
    """Loss of one prediction on a bridge, per sample.

    Parameters
    ----------
    bridge : StochasticInterpolant or BridgeLevels
        In continuous time (its latent noise is that of the bridge), or on training levels.
    prediction : BridgePrediction
        What the network returns and is compared with.
    norm : {"squared", "absolute"}
    weight : LatentPower
        Of the error, by the noise of the bridge.
    density : TimeDensity
        A law of the time itself; on levels it decides how often each is drawn.
    interval : (float, float)
        Training times.
    reduction : {"mean", "sum"}
        Over the entries of one sample.

    Raises
    ------
    ValueError
        If a name is unknown, or the prediction is not defined at an end of the interval.
    """

    bridge: StochasticInterpolant | BridgeLevels
    prediction: BridgePrediction = field(default_factory=DataPrediction)
    norm: str = "squared"
    weight: LatentPower = field(default_factory=LatentPower)
    density: TimeDensity = field(default_factory=UniformTime)
    interval: tuple[float, float] = (0.0, 1.0)
    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_name("norm", self.norm, NORMS)
        check_name("reduction", self.reduction, _REDUCTIONS)
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"interval must increase within [0, 1], got {self.interval}")
        zero, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        ends = self.coefficients(torch.tensor(self.interval, dtype=torch.float64))
        for entries in ((one, zero, zero), (zero, one, zero), (zero, zero, one)):
            source, data, latent = entries
            target = self.prediction.target(ends, _state(ends, source, data, latent), source, data, latent)
            if not bool(target.isfinite().all()):
                raise ValueError(
                    f"bridge prediction {self.prediction.name!r} is not bounded at an end of the interval "
                    f"{self.interval}; keep away from it, for instance with interval=({_MARGIN}, {1 - _MARGIN})"
                )

    def coefficients(self, t: Tensor) -> BridgeCoefficients:
        """Anchor, signal and noise at times of any shape."""
        if isinstance(self.bridge, BridgeLevels):
            return self.bridge.at(t)
        point = self.bridge.at(t)
        return BridgeCoefficients(point.base, point.data, point.latent)

    def labels(self, t: Tensor) -> Tensor:
        """What the network is given as its time: the time, or the training index on levels."""
        return self.bridge.index(t) if isinstance(self.bridge, BridgeLevels) else t

    def times(self, uniforms: Tensor) -> Tensor:
        """Training times for uniforms in (0, 1), float64, within `interval`."""
        return self.density.times(uniforms, None, self.interval)

    def __call__(
        self,
        model: Model,
        source: Tensor,
        data: Tensor,
        latent: Tensor,
        t: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Loss of each sample, shape (B,).

        Parameters
        ----------
        model : callable (x, label, **model_kwargs) -> output
            x is scaled as the prediction says; the label has the type of `data`.
        source, data, latent : Tensor, shape (B, ...)
            A pair and a standard normal of its shape.
        t : Tensor, shape (B,)

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        _check_shapes(t, source=source, data=data, latent=latent)
        narrow = self.coefficients(t)
        at = _broadcast(narrow, data)
        x = _state(at, source, data, latent)
        target = self.prediction.target(at, x, source, data, latent)
        output = model(self.prediction.input_scale(at) * x, _label(self.labels(t), data), **(model_kwargs or {}))
        return self.error(output, target, narrow.noise)

    def error(self, output: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """Weighted error of each sample, (B,), for outputs and targets (B, ...) where the noise is `noise` (B,)."""
        if self.norm == "squared":
            error = squared_error(output, target, self.reduction)
        else:
            error = absolute_error(output, target, self.reduction)
        return self.weight(noise).to(error) * error

    def data_model(self, model: Model, source: Tensor) -> Callable[..., Tensor]:
        """The data prediction (x, t, **model_kwargs) that pathline's bridge samplers take, out of a trained network.

        Parameters
        ----------
        model : callable (x, label, **model_kwargs) -> output
        source : Tensor, shape (B, ...)
            The sources of the batch that is sampled. On levels t is a training index, as the nodes' labels are.
        """

        def predict(x: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
            times = torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))
            on_levels = isinstance(self.bridge, BridgeLevels)
            narrow = self.bridge.at_index(times) if isinstance(self.bridge, BridgeLevels) else self.coefficients(times)
            at = _broadcast(narrow, x)
            label = times if on_levels else self.labels(times)
            output = model(self.prediction.input_scale(at) * x, _label(label, x), **model_kwargs)
            return self.prediction.data(at, x, source, output)

        return predict


@dataclass(frozen=True)
class ConsecutiveBridgeObjective:
    """Loss of the consecutive Brownian bridge: two bridges to two neighbours of a frame, with one noise.

    Both sides are at the same level with the same latent noise; the network is trained on one of them and sees the
    other. It is called as model(x, label, companion=other_side, **model_kwargs), with label N + (index + 1) on the
    side of the following frame and N - (index + 1) on that of the previous one. Lyu et al. 2024, "Frame interpolation
    with consecutive Brownian bridge diffusion", as in the code: x - data, absolute error times min(1 / noise, 5).

    Parameters
    ----------
    side : BridgeObjective
        Of one side, on levels; see `bridge_objective("consecutive")`.

    Raises
    ------
    ValueError
        If the objective of a side is not on levels.
    """

    side: BridgeObjective

    def __post_init__(self) -> None:
        if not isinstance(self.side.bridge, BridgeLevels):
            raise ValueError(f"a consecutive bridge needs sides on training levels, got {self.side.bridge!r}")

    def times(self, uniforms: Tensor) -> Tensor:
        """Training times for uniforms in (0, 1), float64."""
        return self.side.times(uniforms)

    def __call__(
        self,
        model: Model,
        neighbours: tuple[Tensor, Tensor],
        data: Tensor,
        latent: Tensor,
        t: Tensor,
        following: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Loss of each sample, shape (B,).

        Parameters
        ----------
        neighbours : (previous, following), each Tensor of shape (B, ...)
        data, latent : Tensor, shape (B, ...)
            The frame between them, and a standard normal.
        t : Tensor, shape (B,)
        following : bool Tensor, shape (B,)
            Whether a sample is trained on the side of the following frame; drawn with probability 1/2.

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        previous, after = neighbours
        _check_shapes(t, previous=previous, following=after, data=data, latent=latent)
        if following.shape != t.shape or following.dtype != torch.bool:
            raise ValueError(f"following must be a bool tensor of shape {tuple(t.shape)}, got {following.dtype} "
                             f"{tuple(following.shape)}")  # fmt: skip
        bridge = self.side.bridge
        assert isinstance(bridge, BridgeLevels)
        narrow = bridge.at(t)
        at = _broadcast(narrow, data)
        states = [_state(at, source, data, latent) for source in neighbours]
        chosen = following.to(data.device).reshape(-1, *(1,) * (data.ndim - 1))
        x, other = torch.where(chosen, states[1], states[0]), torch.where(chosen, states[0], states[1])
        source = torch.where(chosen, after, previous)
        step = bridge.index(t) + 1
        label = len(bridge) + torch.where(following.to(step.device), step, -step)
        output = model(x, _label(label, data), companion=other, **(model_kwargs or {}))
        return self.side.error(output, self.side.prediction.target(at, x, source, data, latent), narrow.noise)


def absolute_error(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Absolute error of each sample, reduced over its own axes in float32 or wider: (B, ...) -> (B,).

    Raises
    ------
    ValueError
        If the shapes differ or the reduction is neither "mean" nor "sum".
    """
    check_name("reduction", reduction, _REDUCTIONS)
    if output.shape != target.shape:
        raise ValueError(f"the model returned shape {tuple(output.shape)} for a target of {tuple(target.shape)}")
    wide = torch.promote_types(torch.promote_types(output.dtype, target.dtype), torch.float32)
    size = (output.to(wide) - target.to(wide)).abs().flatten(1)
    return size.mean(1) if reduction == "mean" else size.sum(1)


def _state(at: BridgeCoefficients, source: Tensor, data: Tensor, latent: Tensor) -> Tensor:
    return at.anchor * source + at.signal * data + at.noise * latent


def _broadcast(at: BridgeCoefficients, like: Tensor) -> BridgeCoefficients:
    return BridgeCoefficients(*(match(entry, like) for entry in at))


def _label(label: Tensor, like: Tensor) -> Tensor:
    return label.to(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def _check_shapes(t: Tensor, **tensors: Tensor) -> None:
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the tensors of a bridge must have one shape, got {shapes}")
    batch = next(iter(shapes.values()))[:1]
    if tuple(t.shape) != batch:
        raise ValueError(f"t must have shape {batch}, one time per sample, got {tuple(t.shape)}")


def _matching(diffusivity: float = 1.0) -> BridgeObjective:
    return BridgeObjective(BrownianBridge(diffusivity), Drift(), interval=(0.0, 1 - _MARGIN))


def _ddbm(reference: GaussianPath | None = None, **spreads: float) -> BridgeObjective:
    bridge = DiffusionBridge(VPPath(beta_min=0.1, beta_max=2.1) if reference is None else reference)
    return BridgeObjective(bridge, BridgePreconditioned(**spreads), interval=(0.0, 1 - _DDBM_MARGIN))


def _i2sb(**levels: Any) -> BridgeObjective:
    return BridgeObjective(i2sb_levels(**levels), ScaledDisplacement())


def _bbdm(prediction: str = "displacement", **levels: Any) -> BridgeObjective:
    check_name("prediction of BBDM", prediction, ("displacement", "latent", "difference"))
    return BridgeObjective(bbdm_levels(**levels), BridgePrediction.by_name(prediction), "absolute")


def _resshift(scale_input: bool = True, **levels: Any) -> BridgeObjective:
    return BridgeObjective(resshift_levels(**levels), DataPrediction(scale_input))


def _consecutive(**levels: Any) -> BridgeObjective:
    return BridgeObjective(bbdm_levels(**levels), Displacement(), "absolute", LatentPower(-1.0, 5.0))


_MAKERS: dict[str, Callable[..., BridgeObjective]] = {
    "matching": _matching,
    "ddbm": _ddbm,
    "i2sb": _i2sb,
    "bbdm": _bbdm,
    "resshift": _resshift,
    "consecutive": _consecutive,
}
BRIDGE_OBJECTIVES = tuple(_MAKERS)


def bridge_objective(name: str, **options: Any) -> BridgeObjective:
    """The objective of a published bridge model, with its own bridge, prediction, norm, weight and times.

    Parameters
    ----------
    name : {"matching", "ddbm", "i2sb", "bbdm", "resshift", "consecutive"}
        "consecutive" gives that of one side, for `ConsecutiveBridgeObjective`.
    **options
        matching: diffusivity. ddbm: reference (a path, default VP), sigma_data, sigma_source, covariance. bbdm:
        prediction ("displacement", "latent", "difference"). resshift: scale_input. Those on levels: the parameters of
        their levels.

    Raises
    ------
    ValueError
        If the name or an option is unknown, or a value is not allowed.
    """
    if name not in _MAKERS:
        raise unknown_name("bridge objective", name, BRIDGE_OBJECTIVES)
    try:
        return _MAKERS[name](**options)
    except TypeError as error:
        raise ValueError(f"options {sorted(options)} do not fit the bridge objective {name!r}: {error}") from None
