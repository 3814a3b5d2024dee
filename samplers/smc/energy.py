"""Energies: laws p ∝ exp(−E) at every time of a path, and what can be made of several.

An energy is a function (x, t, **kwargs) -> (B,), defined up to a constant that may depend on t only (Du et al. 2023,
"Reduce, reuse, recycle: compositional generation with energy-based diffusion models", arXiv:2302.11552; Thornton et al.
2025, arXiv:2502.12786). As a network it predicts the score −∇E; its negative is the log density that exact weights
need. Weights that compare several times take the constants as they are: log Ẑ then holds for exp(−E) itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath, unknown_name

from ..nodes import Level
from .composition import LogDensity

Energy = Callable[..., Tensor]
"""(x (B, ...), t (B,), **kwargs) -> energies (B,)."""

HEADS = ("half-square", "inner", "denoiser")


class EnergyHead:
    """An energy made of a network with outputs shaped as its input.

    Parameters
    ----------
    network : callable (x, t, **kwargs) -> (B, ...)
    head : {"half-square", "inner", "denoiser"}
        ½|F|², ⟨x, F⟩, or |x − signal·F|²/(2·noise²) for an F that predicts the data.
    path : GaussianPath, optional
        Needed by "denoiser".

    Raises
    ------
    ValueError
        Unknown head, or a missing path.
    """

    def __init__(self, network: Callable[..., Tensor], head: str = "inner", path: GaussianPath | None = None) -> None:
        if head not in HEADS:
            raise unknown_name("head", head, HEADS)
        if head == "denoiser" and path is None:
            raise ValueError("head='denoiser' needs the path, for its signal and noise")
        self.network = network
        self.head = head
        self.path = path

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Energies (B,)."""
        output = self.network(x, t, **kwargs)
        if self.head == "half-square":
            return 0.5 * output.square().flatten(1).sum(1)
        if self.head == "inner":
            return (x * output).flatten(1).sum(1)
        assert self.path is not None
        signal, noise = (level.to(x).reshape(-1, *(1,) * (x.ndim - 1)) for level in self.path.at(t)[:2])
        return 0.5 * ((x - signal * output) / noise).square().flatten(1).sum(1)


class EnergyModel:
    """The network of an energy: predicts the score −∇E by one backward pass.

    Parameters
    ----------
    energy : Energy
    path : GaussianPath

    Attributes
    ----------
    prediction : "score"
        With `path`, what `sample` must know.
    """

    prediction = "score"

    def __init__(self, energy: Energy, path: GaussianPath) -> None:
        self.energy = energy
        self.path = path

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Score (B, ...); keeps the graph for training where gradients are enabled."""
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().requires_grad_(True)
            total = self.energy(leaf, t.to(leaf), **kwargs).sum()
            (slope,) = torch.autograd.grad(total, leaf, create_graph=keep)
        return -slope

    def log_density(self, x: Tensor, level: Level) -> Tensor:
        """−E at a level, (B,), for `Branch` and `law`."""
        with torch.no_grad():
            return log_density_of(self.energy)(x, level)


def log_density_of(energy: Energy, **kwargs: Any) -> LogDensity:
    """−E as a log density of states and levels, under fixed keyword arguments."""

    def density(x: Tensor, level: Level) -> Tensor:
        return -energy(x, torch.full((len(x),), level.time, dtype=x.dtype, device=x.device), **kwargs)

    return density


def weighted_energy(energies: Sequence[Energy], weights: Sequence[float] | None = None) -> Energy:
    """Σ w_i·E_i: a product of laws by default; 1/T makes one colder, (1, −γ) takes the second away from the first.

    A negative weight gives a law only where the others dominate in the tails: Σ w_i/variance_i above 0.

    Raises
    ------
    ValueError
        Unequal numbers of energies and weights, none at all, or a weight that is not finite.
    """
    given = [1.0] * len(energies) if weights is None else [float(w) for w in weights]
    if not energies or len(given) != len(energies) or not all(map(math.isfinite, given)):
        raise ValueError(
            f"weights={weights!r} is not possible for {len(energies)} energies; give one finite number each"
        )

    def total(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        terms = [w * energy(x, t, **kwargs) for w, energy in zip(given, energies, strict=True)]
        return torch.stack(terms).sum(0)

    return total


def mixture_energy(energies: Sequence[Energy], shifts: Sequence[float] | None = None) -> Energy:
    """E = −log Σ exp(−E_i − k_i); its score is Σ softmax(−E − k)_i·score_i.

    Parameters
    ----------
    energies : sequence of Energy
    shifts : sequence of float, optional
        The k_i, default 0. An energy that misses its normalising constant log Z_i needs k_i = log Z_i − log(share);
        since each noised law is normalised, this holds at all times where the E_i are exact.

    Raises
    ------
    ValueError
        Unequal numbers, or none at all.
    """
    given = [0.0] * len(energies) if shifts is None else [float(k) for k in shifts]
    if not energies or len(given) != len(energies):
        raise ValueError(f"shifts={shifts!r} is not possible for {len(energies)} energies; give one number each")

    def mixed(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        terms = [-energy(x, t, **kwargs) - k for energy, k in zip(energies, given, strict=True)]
        return -torch.stack(terms).logsumexp(0)

    return mixed
