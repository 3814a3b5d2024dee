"""Couplings of two batches: which base sample goes with which data sample.

A coupling returns indices, so that labels, weights and augmentations follow their samples.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import check_name, check_positive
from .costs import Cost, squared_distance
from .entropic import Array, sinkhorn
from .newton import newton_sparse


class Pairs(NamedTuple):
    """Pair k is (base[base_index[k]], data[data_index[k]]); the condition is that of the data.

    Attributes
    ----------
    base, data : int64 Tensor (n,)
        On the host.
    """

    base: Tensor
    data: Tensor


class Coupling(Protocol):
    """Pairs of a base batch (n, ...) and a data batch (n, ...) with the conditions (n, ...) of the latter."""

    def __call__(
        self,
        base: Tensor,
        data: Tensor,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """Draw n pairs; `generator` is used only where pairs are drawn from a plan."""


@dataclass(frozen=True)
class IndependentCoupling:
    """Base and data as they come."""

    def __call__(
        self,
        base: Tensor,
        data: Tensor,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """Pairs (k, k)."""
        check_batches(base, data)
        index = torch.arange(len(base))
        return Pairs(index, index)


PLANS = ("exact", "sinkhorn", "newton")
_SHARE = 0.05  # of the mean cost
_LOOSE = 10.0  # times the tolerance, where a plan is still taken without a word


@dataclass(frozen=True)
class TransportCoupling:
    """Optimal transport between the batches. Tong et al., "Improving and generalizing flow-based generative models
    with minibatch optimal transport", TMLR 2024 (arXiv:2302.00482).

    Parameters
    ----------
    plan : {"exact", "sinkhorn", "newton"}
        An assignment that uses every sample once; or pairs drawn from the entropic plan, by Sinkhorn's sweeps or to
        machine precision by `newton_sparse`.
    regularisation : float > 0, optional
        Of entropic plans, in units of the cost; 2σ² with the squared distance gives the Schrödinger bridge of
        Brownian motion with variance σ² (Tong et al., arXiv:2307.03672). By default 0.05 of the mean cost of the two
        batches.
    cost : callable
        (n, ...), (m, ...) -> (n, m).
    tolerance : float
        Marginal error of entropic plans.
    each_data : bool
        Of an entropic plan, one pair for each data sample in their order, its base drawn given it, in place of n
        independent pairs: a pair has the same law, no data sample is left out, and labels stay where they are.

    Raises
    ------
    ValueError
        An unknown plan, a regularisation or tolerance that is not positive and finite, or samples that are not finite.
    """

    plan: str = "exact"
    regularisation: float | None = None
    cost: Cost = squared_distance
    tolerance: float = 1e-6
    each_data: bool = False
    _told: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)
    """Not empty once a plan has stopped short: one warning is enough for all blocks of a run."""

    def __post_init__(self) -> None:
        check_name("plan", self.plan, PLANS)
        if self.regularisation is not None:
            check_positive("regularisation", self.regularisation)
        check_positive("tolerance", self.tolerance)

    def __call__(
        self,
        base: Tensor,
        data: Tensor,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """The assignment in the order of the data, or draws from the plan."""
        check_batches(base, data)
        cost = self.cost(base, data).cpu().numpy()
        if self.plan == "exact":
            return assigned(cost)
        solve = sinkhorn if self.plan == "sinkhorn" else newton_sparse
        regularisation = _SHARE * float(cost.mean()) if self.regularisation is None else self.regularisation
        found = solve(cost, regularisation or 1.0, tolerance=self.tolerance)  # costs of 0 make any plan right
        if found.error > _LOOSE * self.tolerance and not self._told:
            self._told.append(True)
            warnings.warn(
                f"the entropic plan was left at marginal error {found.error:.1e} after {found.sweeps} sweeps, above "
                f"tolerance={self.tolerance:g}: regularisation={regularisation:g} is small for costs of mean "
                f"{cost.mean():.3g}; raise it, or use plan 'newton'",
                stacklevel=2,
            )
        if self.each_data:
            return drawn_for_data(found.matrix, generator)
        return drawn(found.matrix, len(base), generator)


def assigned(cost: Array) -> Pairs:
    """The assignment of least cost, in the order of the data; ValueError if a cost is not finite."""
    from scipy.optimize import linear_sum_assignment

    if not np.isfinite(cost).all():
        raise ValueError("cost must be a finite matrix (n, m); base, data and condition must be finite numbers")

    data, base = linear_sum_assignment(cost.T)
    return Pairs(torch.from_numpy(base), torch.from_numpy(data))


def drawn(plan: Array, count: int, generator: torch.Generator | None = None) -> Pairs:
    """Independent pairs of a plan (n, m): a base sample by its weight, then a data sample given it."""
    uniforms = torch.rand(2, count, dtype=torch.float64, generator=generator).numpy()
    weights = plan.sum(1)
    base = _inverse(np.cumsum(weights), uniforms[0] * weights.sum())
    rows = np.cumsum(plan[base], axis=1)
    data = (rows < (uniforms[1] * rows[:, -1])[:, None]).sum(1).clip(max=plan.shape[1] - 1)
    return Pairs(torch.from_numpy(base), torch.from_numpy(data))


def drawn_for_data(plan: Array, generator: torch.Generator | None = None) -> Pairs:
    """A pair for each data sample of a plan (n, m): a base sample by its weight given the data."""
    uniforms = torch.rand(plan.shape[1], dtype=torch.float64, generator=generator).numpy()
    columns = np.cumsum(plan, axis=0)
    base = (columns < uniforms * columns[-1]).sum(0).clip(max=plan.shape[0] - 1)
    return Pairs(torch.from_numpy(base), torch.arange(plan.shape[1]))


def _inverse(cumulative: Array, places: Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    found: np.ndarray[tuple[int], np.dtype[np.int64]] = np.searchsorted(cumulative, places, side="right")
    return found.clip(max=len(cumulative) - 1)


def check_batches(base: Tensor, data: Tensor) -> None:
    """Raise ValueError unless both are non-empty batches of one size."""
    if base.ndim < 1 or data.ndim < 1 or len(base) != len(data) or not len(base):
        raise ValueError(
            f"base and data must be batches of one size, got shapes {tuple(base.shape)} and {tuple(data.shape)}"
        )
