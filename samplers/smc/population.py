"""A weighted population: when it is resampled, what it estimates, and its record."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pathline.interpolants import unknown_name

from .genealogy import Genealogy
from .resampling import Indices, Scheme, resample, scheme_by_name
from .weights import SIZES, effective_size, log_mean_exp, normalised

EXTINCT = ("warn", "raise")


class ExtinctionError(FloatingPointError):
    """Every particle has weight 0."""


@dataclass(frozen=True)
class Policy:
    """When and how a population is resampled.

    Attributes
    ----------
    resampler : str or callable
        A name of `SCHEMES` or a `Scheme`.
    ess : float in [0, 1]
        Resample where ESS < ess·N; 0 never does, 1 at every checkpoint at which the weights are not all equal.
    criterion : {"ess", "perplexity", "largest"}
        What stands for the ESS in that rule: (Σw)²/Σw², exp of the entropy of the weights, or 1 over the largest.
    every : int ≥ 1
        A checkpoint after every so many weightings. Only a checkpoint reads the weights on the host.
    last : bool
        Resample after the last weighting too, so that the particles count alike; else the final weights are kept, which
        estimates averages better.
    extinct : {"warn", "raise"}
        What to do where all weights are 0: warn, make them equal and go on with log Ẑ = −inf, or `ExtinctionError`.
    """

    resampler: str | Scheme = "systematic"
    ess: float = 0.5
    every: int = 1
    last: bool = False
    extinct: str = "warn"
    criterion: str = "ess"

    def __post_init__(self) -> None:
        scheme_by_name(self.resampler)
        if not 0.0 <= self.ess <= 1.0:
            raise ValueError(f"ess={self.ess!r} is not possible; it is a share of the particles, in [0, 1]")
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every={self.every!r} is not possible; it must be a whole number, at least 1")
        if self.criterion not in SIZES:
            raise unknown_name("criterion", self.criterion, SIZES)
        if self.extinct not in EXTINCT:
            raise unknown_name("extinct", self.extinct, EXTINCT)


@dataclass(frozen=True)
class Checkpoint:
    """What was seen at one checkpoint: where, ESS before a resampling, whether it came, log Ẑ, ancestors left."""

    row: int
    ess: float
    resampled: bool
    log_z: float
    ancestors: int


@dataclass
class Population:
    """Weights of N particles and everything that follows from them.

    Attributes
    ----------
    size : int
        Number N of particles, over all processes.
    policy : Policy
    seed : int
        Key of the uniforms of resampling.
    genealogy : Genealogy
    trace : list of Checkpoint
    """

    size: int
    policy: Policy = field(default_factory=Policy)
    seed: int = 0
    trace: list[Checkpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size!r} is not possible; at least 1 particle is needed")
        if self.size == 1:
            warnings.warn("one particle: nothing to resample among, its weight is only an estimate of Z", stacklevel=3)
        self.genealogy = Genealogy(self.size)
        self._told: set[str] = set()
        self._log_z = 0.0  # of the weights put aside by resampling

    def checkpoint(self, log_weights: Tensor, row: int, *, last: bool = False) -> tuple[Tensor, Indices | None]:
        """Look at the weights and resample if the policy says so.

        Parameters
        ----------
        log_weights : (N,)
        row : int
            Any number that names this moment once; it keys the uniforms.
        last : bool
            The last weighting of the run.

        Returns
        -------
        log-weights (N,) float64 on the host afterwards, and the slots to copy from, or None where nobody moves.

        Raises
        ------
        ExtinctionError
            All weights are 0 and the policy says "raise".
        ValueError
            A weight is infinite.
        """
        lw = self._sound(log_weights, row)
        ess = float(effective_size(lw))
        size = ess if self.policy.criterion == "ess" else float(SIZES[self.policy.criterion](lw))
        due = self.policy.last if last else size < self.policy.ess * self.size * (1 - 1e-12)
        moved = due and self.size > 1 and bool(lw.min() < lw.max())
        parents: Indices | None = None
        if moved:
            self._log_z += float(log_mean_exp(lw))
            shares = normalised(lw).numpy()
            parents = resample(shares, scheme=self.policy.resampler, seed=self.seed, step=row)
            self.genealogy.record(parents, shares)
            lw = torch.zeros_like(lw)
        here = Checkpoint(row, ess, moved, self.log_z(lw), self.genealogy.unique)
        self.trace.append(here)
        return lw, parents

    def log_z(self, log_weights: Tensor) -> float:
        """Log Ẑ: what earlier resamplings put aside, and the mean of the weights now."""
        return self._log_z + float(log_mean_exp(log_weights))

    def log_z_error(self, log_weights: Tensor) -> float:
        """Standard error of log Ẑ from this run alone (see `Genealogy.relative_variance`); nan if it cannot be told.

        It cannot where every particle had weight 0 once, or there is but one.
        """
        if self._log_z == -math.inf:
            return math.nan
        return math.sqrt(self.genealogy.relative_variance(normalised(log_weights).cpu().numpy()))

    def _sound(self, log_weights: Tensor, row: int) -> Tensor:
        """Weights on the host: NaN is weight 0, and all of weight 0 become equal; each warned of once."""
        lw = log_weights.detach().to("cpu", torch.float64)
        if bool(lw.isnan().any()):
            self._warn("NaN", f"{int(lw.isnan().sum())} of {self.size} weights are NaN at row {row}: they count as 0")
            lw = torch.where(lw.isnan(), -torch.inf, lw)
        if bool((lw == torch.inf).any()):
            raise ValueError(f"a log-weight is +inf at row {row}; potentials must be finite or 0")
        if bool((lw == -torch.inf).all()):
            message = f"all {self.size} particles have weight 0 at row {row}"
            if self.policy.extinct == "raise":
                raise ExtinctionError(message)
            self._warn("extinct", f"{message}: they go on with equal weights, and log Ẑ is −inf")
            self._log_z = -math.inf
            return torch.zeros_like(lw)
        return lw

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._told:
            warnings.warn(message, stacklevel=4)
        self._told.add(kind)
