"""Guidance away from a second prediction: classifier-free guidance, autoguidance, several conditions at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..table import Table
from .protocol import Network, Part, Place, StepMap, known


class Pair:
    """Base of guidances that combine two predictions, the model's own and a reference to go away from.

    Sub-classes give `branches`, which evaluates both, and may replace `combine`. Both predictions are raw network
    outputs; all predictions of a network are affine in each other with weights that `combine` makes sum to 1, so the
    linear rule guides the same field whatever the network predicts.
    """

    scale: float | None

    def scale_at(self, place: Place | None) -> float:
        """The scale in force at an evaluation."""
        assert self.scale is not None
        return self.scale

    def active(self, place: Place | None) -> bool:
        """Whether the reference is needed; without it the evaluation is the model's own, of one branch."""
        return self.scale_at(place) != 1.0

    def branches(
        self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None
    ) -> tuple[Tensor, Tensor]:
        """The model's output and the reference's, both in the model's prediction."""
        raise NotImplementedError

    def combine(self, own: Tensor, reference: Tensor, x: Tensor, place: Place | None) -> Tensor:
        """The guided output: reference + scale·(own − reference)."""
        return torch.lerp(reference, own, self.scale_at(place))

    def at(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None) -> Tensor:
        """The guided output at a place."""
        if not self.active(place):
            return network(x, t, **kwargs)
        return self.combine(*self.branches(network, x, t, kwargs, place), x, place)

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Guided output from one call of twice the batch, or from two calls."""
        return self.at(network, x, t, kwargs, None)


@dataclass(frozen=True)
class ClassifierFree(Pair):
    """Classifier-free guidance: out = unconditional + scale·(conditional − unconditional) (Ho and Salimans 2022).

    Attributes
    ----------
    scale : float
        1 is the conditional model (one branch only), 0 the unconditional one. The convention of Imagen, diffusers and
        EDM; `ClassifierFree.original` takes the paper's.
    unconditional : mapping
        Keyword arguments that replace the conditional ones in the unconditional branch.
    batched : bool
        Evaluate both branches in one call of twice the batch.
    """

    scale: float
    unconditional: Mapping[str, Any]
    batched: bool = True

    @classmethod
    def original(cls, strength: float, unconditional: Mapping[str, Any], batched: bool = True) -> ClassifierFree:
        """In the paper's convention, out = (1 + strength)·conditional − strength·unconditional."""
        return cls(1.0 + strength, unconditional, batched)

    def branches(
        self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None
    ) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional output."""
        free = {**kwargs, **self.unconditional}
        if not self.batched:
            return network(x, t, **kwargs), network(x, t, **free)
        missing = self.unconditional.keys() - kwargs.keys()
        if missing:
            raise ValueError(f"guidance replaces {sorted(missing)}, which model_kwargs does not hold")
        joined = {key: _join(kwargs[key], free[key], len(x)) for key in free}
        both = network(torch.cat([x, x]), torch.cat([t, t]), **joined)
        if place is not None:
            place.forwards += 1  # one call, but of twice the batch
        conditional, unconditional = both.chunk(2)
        return conditional, unconditional


@dataclass(frozen=True)
class AutoGuidance(Pair):
    """Guidance away from a worse model under the same condition (Karras et al. 2024, arXiv:2406.02507).

    out = weak + scale·(own − weak), in the paper D₁ + (w − 1)(D₁ − D₀).

    Attributes
    ----------
    scale : float
        The paper's w; released presets lie between 1.7 and 2.85.
    weak : callable (x, t, **kwargs)
        The smaller or less trained model, on the same path. If it has an attribute `prediction` (as wrapped models do)
        that is not the model's, its output is converted.
    replaced : mapping
        Keyword arguments of the weak model that differ, such as another condition.
    """

    scale: float
    weak: Network
    replaced: Mapping[str, Any] = field(default_factory=dict)

    def branches(
        self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None
    ) -> tuple[Tensor, Tensor]:
        """Output of the model and of the weak one."""
        weak = self.weak if place is None else place.counted(self.weak)
        own, reference = network(x, t, **kwargs), weak(x, t, **{**kwargs, **self.replaced})
        kind = getattr(self.weak, "prediction", None)
        if kind is not None and (place is None or kind != place.prediction):
            here = known(place, "AutoGuidance with a model of another prediction")
            reference = here.convert(x, reference, kind, here.prediction).to(own.dtype)
        return own, reference


@dataclass(frozen=True)
class MultiCondition:
    """Several conditions at once: out = unconditional + Σ_k weight_k·(conditional_k − unconditional).

    With two classes of equal weight it goes to what lies between them (Deschenaux et al. 2024).

    Attributes
    ----------
    weights : sequence of K floats
        Negative ones lead away from a condition. The weights of all branches sum to 1, so that every prediction is
        guided the same; the released script, whose weights sum to K, is not offered.
    conditions : sequence of K mappings
        Keyword arguments of each conditional branch, over the run's own.
    unconditional : mapping
        Those of the unconditional branch.
    """

    weights: Sequence[float]
    conditions: Sequence[Mapping[str, Any]]
    unconditional: Mapping[str, Any]

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.conditions) or not self.weights:
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.conditions)} conditions are not possible; give one for each"
            )

    @property
    def summary(self) -> str:
        """The weights in words, as fitted tables record them."""
        return f"MultiCondition({list(self.weights)})"

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Guided output from K + 1 calls."""
        free = network(x, t, **{**kwargs, **self.unconditional})
        total = free.clone()
        for weight, condition in zip(self.weights, self.conditions, strict=True):
            if weight:
                total = total + weight * (network(x, t, **{**kwargs, **condition}) - free)
        return total


@dataclass(frozen=True)
class Scheduled(Part, Pair):
    """A pair whose scale depends on where the evaluation stands.

    Attributes
    ----------
    inner : ClassifierFree, AutoGuidance
    scales : function (place) -> scale, or a sequence with the scale of every step
    """

    inner: Pair
    scales: Callable[[Place], float] | Sequence[float]

    @property
    def scale(self) -> None:  # type: ignore[override]
        """None: there is no one scale."""

    def check(self, table: Table | None) -> None:
        """Raise ValueError, before any call, unless every step has a scale."""
        if callable(self.scales):
            return
        if table is None:
            raise ValueError("Scheduled knows the scale of every step; adaptive methods have none, give a function")
        if len(self.scales) < (steps := StepMap(table).count):
            raise ValueError(f"Scheduled has {len(self.scales)} scales for {steps} steps; give one for each")

    def scale_at(self, place: Place | None) -> float:
        """The scale at a step.

        Raises
        ------
        ValueError
            The step is not known, or has no scale.
        """
        here = known(place, "Scheduled")
        if callable(self.scales):
            return float(self.scales(here))
        if here.step is None or here.step >= len(self.scales):
            raise ValueError(f"Scheduled has {len(self.scales)} scales, none for step {here.step}; give one for each")
        return float(self.scales[here.step])

    def branches(
        self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None
    ) -> tuple[Tensor, Tensor]:
        """Those of the pair inside."""
        return self.inner.branches(network, x, t, kwargs, place)


def _join(conditional: Any, unconditional: Any, batch: int) -> Any:
    if isinstance(conditional, Tensor) and isinstance(unconditional, Tensor) and conditional.shape[:1] == (batch,):
        return torch.cat([conditional, unconditional])
    if conditional is unconditional or (
        type(conditional) is type(unconditional) is not Tensor and conditional == unconditional
    ):
        return conditional
    raise ValueError(
        "batched guidance can join only tensors whose first dimension is the batch; "
        "use ClassifierFree(..., batched=False)"
    )
