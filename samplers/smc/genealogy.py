"""Who descends from whom: diversity of a population and the error bar of its normalising constant."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..numerics import Array
from .resampling import Indices


@dataclass
class Genealogy:
    """Ancestors of N particles through a run.

    Attributes
    ----------
    size : int
    parents : list of (N,) int arrays
        One for each resampling: the slot each particle came from.
    first : (N,) int array
        The slot of the first generation each particle descends from.
    gained : float
        What weighting has added to the concentration of families so far.
    unique : int
        Number of particles of the first generation that have descendants.
    """

    size: int
    parents: list[Indices] = field(default_factory=list)
    first: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    gained: float = 0.0

    def __post_init__(self) -> None:
        if len(self.first) == 0:
            self.first = np.arange(self.size, dtype=np.int64)
        self.unique = self.size

    def record(self, parents: Indices, weights: Array) -> None:
        """One resampling by normalised weights (N,)."""
        self.gained += self._gain(weights)
        self.parents.append(parents)
        self.first = self.first[parents]
        self.unique = int(np.count_nonzero(np.bincount(self.first, minlength=self.size)))

    def line(self, particle: int) -> list[int]:
        """Slots of one particle's ancestors, first generation first, itself last."""
        slots = [particle]
        for parents in reversed(self.parents):
            slots.append(int(parents[slots[-1]]))
        return slots[::-1]

    def relative_variance(self, weights: Array) -> float:
        """Estimate of Var(Ẑ)/Z² from one run, after Lee and Whiteley (2018, arXiv:1509.00394).

        They ask how much the shares of the families of the first generation concentrate, beyond what multinomial
        choices do by themselves. Here what resampling itself adds is left out as it happened, which is the same in the
        mean. With schemes of less variance than multinomial and a resampling at every step it comes out too small
        (measured: by a third in variance for systematic choices); with seldom resampling it is right for all.

        Parameters
        ----------
        weights : (N,) normalised weights now

        Returns
        -------
        float ≥ 0; nan for one particle, or where all descend from one and nothing can be told.
        """
        if self.size < 2 or (self.parents and self.unique < 2):
            return math.nan
        return max(0.0, self.gained + self._gain(weights)) * self.size / (self.size - 1)

    def _gain(self, weights: Array) -> float:
        """Σ over families of share², by these weights less by numbers."""
        shares = np.bincount(self.first, weights=weights, minlength=self.size)
        numbers = np.bincount(self.first, minlength=self.size) / self.size
        return float(np.square(shares).sum() - np.square(numbers).sum())
