"""Guidance by gradients: classifiers, costs of the clean estimate, several classes at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import check_name

from .protocol import Guidance, Network, Part, Place, guided_output, known, row_step

LogProbability = Callable[..., Tensor]
Cost = Callable[[Tensor], Tensor]
CLASSIFIER_FORMS = ("score", "ancestral")
_EMPTY = 1e-12


@dataclass(frozen=True)
class ClassifierGuidance(Part):
    """Classifier guidance: score + weight·∇ log p(y|x, t) (Dhariwal and Nichol 2021, arXiv:2105.05233).

    Attributes
    ----------
    weight : float
    log_probability : function
        Of (x, t, **classifier_kwargs) for a classifier of noisy states, or of (data, **classifier_kwargs) with on_data;
        returns log p(y|·) of shape (B,).
    classifier_kwargs : mapping
        Tensors in it are the whole batch's: with chunks, pass conditions as model_kwargs and read them in a closure.
    on_data : bool
        The classifier is one of clean data, evaluated at the data prediction; its gradient goes through the network.
    form : {"score", "ancestral"}
        "ancestral" is Algorithm 1 of the paper: the mean of a stochastic step moves by weight·Σ·∇ with Σ the step's
        variance (methods with one call per step); a step without noise is not guided.
    inner : guidance, optional
        Makes the output that is guided.
    """

    weight: float
    log_probability: LogProbability
    classifier_kwargs: Mapping[str, Any] | None = None
    on_data: bool = False
    form: str = "score"
    inner: Guidance | None = None

    def __post_init__(self) -> None:
        check_name("form of classifier guidance", self.form, CLASSIFIER_FORMS)

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Refuses: the level is needed."""
        return self.at(network, x, t, kwargs, None)

    def at(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None) -> Tensor:
        """The guided output."""
        here, own = known(place, "ClassifierGuidance"), dict(self.classifier_kwargs or {})
        if self.weight == 0.0:
            return _inner(self.inner, network, x, t, kwargs, here)
        if self.on_data:
            output, slope = _through_data(
                lambda data: self.log_probability(data, **own), self.inner, (network, x, t, kwargs), here
            )
        else:
            output = _inner(self.inner, network, x, t, kwargs, here)
            _, slope = gradient(lambda state: (None, self.log_probability(state, t, **own)), x)
        return here.add_score(output, self._factor(here) * slope)

    def _factor(self, here: Place) -> float:
        if self.form == "score":
            return self.weight
        if here.table is None or here.row is None:
            raise ValueError("form='ancestral' needs the steps of a table; adaptive methods and pipelines have none")
        if here.table.rows[here.row].output == here.table.result or here.level.signal == 0.0:
            return 0.0
        step = row_step(here.table, here.row)
        # the score moves the data prediction by noise²/signal, and that moves the mean by on_data
        return self.weight * step.fresh**2 * here.level.signal / (step.on_data * here.level.noise**2)


@dataclass(frozen=True)
class CostGuidance(Part):
    """Guidance by a cost of the clean estimate: score − weight·∇_x cost(D(x)) (MotionDiffuser, Jiang et al. 2023).

    The gradient goes through the network. It leaves out the spread of the data given x, so that the result is more
    concentrated than the posterior of exp(−cost).

    Attributes
    ----------
    cost : function of the data prediction (B, ...) -> (B,)
    weight : float
    clip : bool
        Limit every element of the gradient to ±1/noise (score thresholding).
    inner : guidance, optional
        Makes the output that is guided.
    """

    cost: Cost
    weight: float = 1.0
    clip: bool = False
    inner: Guidance | None = None

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Refuses: the level is needed."""
        return self.at(network, x, t, kwargs, None)

    def at(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None) -> Tensor:
        """The guided output."""
        here = known(place, "CostGuidance")
        output, slope = _through_data(self.cost, self.inner, (network, x, t, kwargs), here)
        if self.clip:
            slope = (here.level.noise * slope).clamp(-1.0, 1.0) / here.level.noise
        return here.add_score(output, -self.weight * slope)


@dataclass(frozen=True)
class InnerOptimisation(Part):
    """Gradient steps on the clean estimate itself, which then takes its place (MotionDiffuser, Jiang et al. 2023).

    y₀ = D(x), y ← y − rate·∇cost(y): no gradient through the network.

    Attributes
    ----------
    cost : function of the data prediction (B, ...) -> (B,)
    rate : float
    steps : int ≥ 1
    inner : guidance, optional
        Makes the output that is changed.
    """

    cost: Cost
    rate: float
    steps: int = 1
    inner: Guidance | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps!r} of InnerOptimisation is not possible; it must be at least 1")

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Refuses: the level is needed."""
        return self.at(network, x, t, kwargs, None)

    def at(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None) -> Tensor:
        """The output of the optimised estimate."""
        here = known(place, "InnerOptimisation")
        output = _inner(self.inner, network, x, t, kwargs, here)
        data = here.to_data(x, output)
        for _ in range(self.steps):
            _, slope = gradient(lambda y: (None, self.cost(y)), data)
            data = data - self.rate * slope
        return here.from_data(x, data).to(output.dtype)


def between_classes(log_probabilities: LogProbability, weights: Mapping[int, float]) -> LogProbability:
    """Σ_k weight_k·log p(k|x, t) for `ClassifierGuidance`: zero-shot interpolation (Deschenaux et al. 2024).

    Two classes of one weight pull to where the classifier cannot tell them apart; published weights are 3.5 and 30.

    Parameters
    ----------
    log_probabilities : function (x, t, **kwargs) -> (B, K)
        Logarithms of normalised class probabilities.
    weights : mapping of class -> weight
    """
    if not weights:
        raise ValueError("weights={} holds no class to guide towards")

    def combined(*args: Any, **kwargs: Any) -> Tensor:
        found = log_probabilities(*args, **kwargs)
        return torch.stack([weight * found[:, label] for label, weight in weights.items()]).sum(0)

    return combined


def attractor(target: Tensor, mask: Tensor | None = None) -> Cost:
    """Mean distance |data − target| over the elements in `mask` (MotionDiffuser), both broadcast to (B, ...)."""

    def cost(data: Tensor) -> Tensor:
        held = torch.ones_like(data) if mask is None else mask.to(data).expand_as(data)
        return (held * (data - target).abs()).flatten(1).sum(1) / (held.flatten(1).sum(1) + _EMPTY)

    return cost


def repeller(radius: float) -> Cost:
    """Closeness of agents below `radius` (MotionDiffuser), for data (B, agents, ..., coordinates).

    The mean of 1 − distance/radius over the pairs of agents, at the same place in between, that are nearer.
    """
    if not radius > 0.0:
        raise ValueError(f"radius={radius!r} is not possible; it must be above 0")

    def cost(data: Tensor) -> Tensor:
        first, second = torch.triu_indices(data.shape[1], data.shape[1], 1, device=data.device)
        apart = data[:, first] - data[:, second]
        distance = (apart.square().sum(-1) + _EMPTY**2).sqrt()
        near = (1.0 - distance / radius).clamp_min(0.0).flatten(1)
        return near.sum(1) / ((near > 0.0).sum(1) + _EMPTY)

    return cost


def gradient(function: Callable[[Tensor], tuple[Any, Tensor]], x: Tensor) -> tuple[Any, Tensor]:
    """What `function` returns besides, and the gradient at `x` (B, ...) of each sample's value (B,).

    Raises
    ------
    ValueError
        The value has another shape, or does not depend on x.
    """
    with torch.inference_mode(False), torch.enable_grad():
        state = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        other, value = function(state)
        if value.shape != (len(x),):
            raise ValueError(f"a guiding function returned shape {tuple(value.shape)}; one value for each of {len(x)}")
        if not value.requires_grad:
            raise ValueError("a guiding function returned a value that does not depend on the state")
        (slope,) = torch.autograd.grad(value.sum(), state)
    return other, slope


def _through_data(
    function: Cost, inner: Guidance | None, call: tuple[Network, Tensor, Tensor, dict[str, Any]], here: Place
) -> tuple[Tensor, Tensor]:
    """The output at x, and the gradient by x of a function of the data prediction."""
    network, x, t, kwargs = call

    def through(state: Tensor) -> tuple[Tensor, Tensor]:
        output = _inner(inner, network, state, t, kwargs, here)
        return output.detach(), function(here.to_data(state, output))

    return gradient(through, x)


def _inner(
    inner: Guidance | None, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], here: Place
) -> Tensor:
    return network(x, t, **kwargs) if inner is None else guided_output(inner, network, x, t, kwargs, here)
