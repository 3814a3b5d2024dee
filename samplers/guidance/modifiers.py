"""Guidances around another one: rescaling, an interval, projection, precision weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import check_name

from .pairs import AutoGuidance, ClassifierFree, Pair, Scheduled
from .protocol import Network, Part, Place, known, parts_of

INTERVAL_KINDS = ("sigma", "step", "fraction")
_ROUNDING = 1e-12


class Modifier(Part, Pair):
    """A pair around a pair: the branches are those inside."""

    inner: Pair

    @property
    def scale(self) -> float | None:  # type: ignore[override]
        """That of the pair inside; None where it has not one."""
        return self.inner.scale

    def scale_at(self, place: Place | None) -> float:
        """That of the pair inside."""
        return self.inner.scale_at(place)

    def active(self, place: Place | None) -> bool:
        """Whether the pair inside is."""
        return self.inner.active(place)

    def branches(
        self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None
    ) -> tuple[Tensor, Tensor]:
        """Those of the pair inside."""
        return self.inner.branches(network, x, t, kwargs, place)


@dataclass(frozen=True)
class Rescaled(Modifier):
    """Guidance rescale (Lin et al. 2024, arXiv:2305.08891, eq. 15 and 16), as in diffusers.

    The guided output g is scaled to the standard deviation of the conditional one over each sample, and mixed in:
    out = factor·g·std(own)/std(g) + (1 − factor)·g. It acts on raw network outputs, and so depends on what the network
    predicts; published for v prediction.

    Attributes
    ----------
    inner : a pair, or a modifier of one
    factor : float in [0, 1]
        0 is off; 0.7 is published, with scale 7.5.
    """

    inner: Pair
    factor: float = 0.7

    def __post_init__(self) -> None:
        check_pair("Rescaled", self.inner)
        if not 0.0 <= self.factor <= 1.0:
            raise ValueError(f"factor={self.factor!r} of Rescaled is not possible; it must lie in [0, 1]")

    def combine(self, own: Tensor, reference: Tensor, x: Tensor, place: Place | None) -> Tensor:
        """The rescaled output."""
        guided = self.inner.combine(own, reference, x, place)
        if self.factor == 0.0 or own[0].numel() < 2:
            return guided
        wanted, present = _spread(own), _spread(guided)
        ratio = torch.where(present > 0.0, wanted / present.clamp_min(torch.finfo(present.dtype).tiny), 1.0)
        return guided * torch.lerp(torch.ones_like(ratio), ratio, self.factor)


@dataclass(frozen=True)
class Interval(Modifier):
    """Guidance in a limited interval (Kynkäänniemi et al. 2024, arXiv:2404.07724); outside it the model's own output.

    The reference is not evaluated outside. Inside are evaluations with low < σ ≤ high (by="sigma", σ = noise/signal,
    every stage for itself), steps low ≤ i ≤ high (by="step", all stages of a step together: the released rule; the
    published interval is 17 to 22 of EDM's 32 steps), or int(low·S) ≤ i < int(high·S) of S steps (by="fraction", that
    of diffusers).

    Attributes
    ----------
    inner : a pair, or a modifier of one
    low, high : float
    by : {"sigma", "step", "fraction"}
    forget : bool
        Whether what the guidance inside keeps (the momentum of `Projected`) starts anew on each entry; else it waits.
    """

    inner: Pair
    low: float
    high: float
    by: str = "sigma"
    forget: bool = True

    def __post_init__(self) -> None:
        check_pair("Interval", self.inner)
        check_name("kind of interval", self.by, INTERVAL_KINDS)
        if not self.low <= self.high or (self.by == "fraction" and not (self.low >= 0.0 and self.high <= 1.0)):
            raise ValueError(f"low={self.low!r}, high={self.high!r} are no interval of kind {self.by!r}")

    def inside(self, place: Place) -> bool:
        """Whether an evaluation is in the interval."""
        if self.by == "sigma":
            return self.low < place.sigma <= self.high
        if place.step is None or place.steps is None:
            raise ValueError(f"Interval(by={self.by!r}) needs steps, which adaptive methods have not; use by='sigma'")
        if self.by == "step":
            return self.low <= place.step <= self.high
        return int(self.low * place.steps) <= place.step < int(self.high * place.steps)

    def active(self, place: Place | None) -> bool:
        """Whether the evaluation is in the interval and guided there."""
        here = known(place, "Interval")
        if self.inside(here):
            return self.inner.active(place)
        if self.forget:
            owned = tuple(f"{id(part)}:" for part in parts_of(self.inner))
            for name in [name for name in here.memory if name.startswith(owned)]:
                del here.memory[name]
        return False

    def combine(self, own: Tensor, reference: Tensor, x: Tensor, place: Place | None) -> Tensor:
        """As inside."""
        return self.inner.combine(own, reference, x, place)


@dataclass(frozen=True)
class Projected(Modifier):
    """Adaptive projected guidance, APG (Sadat et al. 2025, arXiv:2410.02416), on data predictions.

    With Δ = D_own − D_reference: Δ ← Δ + momentum·(the last Δ so made), Δ ← Δ·min(1, norm/‖Δ‖), and of the part of Δ
    along D_own only the share eta is kept; D = D_own + (scale − 1)·Δ. Norms and projections are over each sample.

    Attributes
    ----------
    inner : ClassifierFree, AutoGuidance or Scheduled
    eta : float
        1 keeps Δ (with the other defaults: plain guidance), 0 projects it away altogether.
    norm : float > 0, optional
        Largest norm of Δ; None is no limit. Published: 2.5 (class-conditional latents) to 15 (SDXL).
    momentum : float, optional
        Negative; published −0.5 or −0.75. It advances once per step: the later stages of a step use what its first
        stage used. Adaptive methods have no steps and refuse it.

    Notes
    -----
    diffusers adds scale·Δ to the reference by default, which is another rule unless Δ is unchanged.
    """

    inner: Pair
    eta: float = 0.0
    norm: float | None = None
    momentum: float | None = None

    def __post_init__(self) -> None:
        check_source("Projected", self.inner)
        if self.norm is not None and not self.norm > 0.0:
            raise ValueError(f"norm={self.norm!r} of Projected is not possible; it must be above 0, or None")
        if not math.isfinite(self.eta):
            raise ValueError(f"eta={self.eta!r} of Projected is not possible; it must be finite")

    def combine(self, own: Tensor, reference: Tensor, x: Tensor, place: Place | None) -> Tensor:
        """The guided output, in the network's prediction."""
        here = known(place, "Projected")
        data = here.to_data(x, own)
        change = self._with_momentum(data - here.to_data(x, reference), here)
        if self.norm is not None:
            length = _norm(change)
            change = change * torch.clamp(self.norm / length.clamp_min(_ROUNDING), max=1.0)
        if self.eta != 1.0:
            along = parallel(change, data)
            change = change - along + self.eta * along
        guided = data + (self.scale_at(place) - 1.0) * change
        return here.from_data(x, guided).to(own.dtype)

    def _with_momentum(self, change: Tensor, here: Place) -> Tensor:
        if not self.momentum:
            return change
        if here.step is None:
            raise ValueError(f"momentum={self.momentum!r} of Projected needs steps, which adaptive methods have not")
        last, before = f"{id(self)}:last", f"{id(self)}:before"
        if here.first_stage and last in here.memory:
            here.memory[before] = here.memory[last]
        if before in here.memory:
            change = change + self.momentum * here.memory[before]
        if here.first_stage:
            here.memory[last] = change
        return change


@dataclass(frozen=True)
class PrecisionWeighted(Modifier):
    """Guidance with a weight for each element, larger where the sampler is unsure (CogDPM, Chen et al. 2024).

    out = reference + scale·W ⊙ (own − reference) with W from the model's own data predictions at the last steps. The
    published map is not released; the default is the abstract's: attention to elements of low precision, W = V/mean(V)
    with V the variance of each element over the last steps.

    Attributes
    ----------
    inner : ClassifierFree, AutoGuidance or Scheduled
    window : int ≥ 2
        Number of steps whose predictions count.
    weight_map : function of the predictions (B, K, ...), oldest first, K ≤ window -> what broadcasts to (B, ...)
    """

    inner: Pair
    window: int = 3
    weight_map: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_source("PrecisionWeighted", self.inner)
        if self.window < 2:
            raise ValueError(f"window={self.window!r} of PrecisionWeighted is not possible; it must be at least 2")

    def combine(self, own: Tensor, reference: Tensor, x: Tensor, place: Place | None) -> Tensor:
        """The guided output."""
        here = known(place, "PrecisionWeighted")
        history = self._history(here.to_data(x, own), here)
        weight = (self.weight_map or variance_weights)(history).to(own.dtype)
        return reference + self.scale_at(place) * weight * (own - reference)

    def _history(self, data: Tensor, here: Place) -> Tensor:
        name = f"{id(self)}:history"
        past = here.memory.get(name)
        history = data[:, None] if past is None else torch.cat([past, data[:, None]], dim=1)[:, -self.window :]
        if here.first_stage:
            here.memory[name] = history
        return history


def variance_weights(history: Tensor) -> Tensor:
    """Variance of each element over predictions (B, K, ...), divided by its mean over the sample; 1 without any."""
    variance = history.var(dim=1, unbiased=False)
    mean = variance.mean(dim=tuple(range(1, variance.ndim)), keepdim=True)
    return torch.where(mean > 0.0, variance / mean.clamp_min(torch.finfo(mean.dtype).tiny), 1.0)


def parallel(change: Tensor, direction: Tensor) -> Tensor:
    """The part of `change` along `direction`, for each sample (B, ...); computed in float64 where there is any."""
    wide = torch.float32 if change.device.type == "mps" else torch.float64
    a, b = change.to(wide), direction.to(wide)
    dims = tuple(range(1, a.ndim))
    power = (b * b).sum(dims, keepdim=True)
    share = (a * b).sum(dims, keepdim=True) / power.clamp_min(torch.finfo(wide).tiny)
    return (share * b).to(change.dtype)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def _spread(x: Tensor) -> Tensor:
    return (x if x.element_size() >= 4 else x.float()).std(dim=tuple(range(1, x.ndim)), keepdim=True).to(x.dtype)


def check_pair(name: str, inner: Any) -> None:
    """Raise ValueError unless `inner` has two branches."""
    if not isinstance(inner, Pair):
        raise ValueError(f"{name} goes around a guidance of two branches, not {type(inner).__name__}")


def check_source(name: str, inner: Any) -> None:
    """Raise ValueError unless `inner` leaves the combination of its branches to others."""
    if not isinstance(inner, (ClassifierFree, AutoGuidance, Scheduled)):
        raise ValueError(
            f"{name} makes its own combination of two branches, so it goes directly around ClassifierFree, "
            f"AutoGuidance or Scheduled, not {type(inner).__name__}; put the other around it"
        )
