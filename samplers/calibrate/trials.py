"""What a choice tried, and what it chose."""

from __future__ import annotations

from dataclasses import dataclass

from ..table import Table


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes
    ----------
    name : str
    error : float
        `mean_error` on the hold-out; infinite where the run was not finite.
    calls : int
        Network calls that finding and judging it took.
    table : Table or None
        None where it was not tried; then `note` says why, else what the fit decided on the way.
    tuned : bool
    note : str
    distance : float or None
        Of features, where that is what chooses.
    """

    name: str
    error: float
    calls: int
    table: Table | None
    tuned: bool = False
    note: str = ""
    distance: float | None = None

    @property
    def score(self) -> float:
        """What chooses: the distance where there is one, else the error."""
        return self.error if self.distance is None else self.distance


@dataclass(frozen=True)
class Choice:
    """The chosen table, and everything that was tried, best first.

    Attributes
    ----------
    table : Table
        With its provenance, see `fitted.described_fit`.
    error, untuned_error : float
        Hold-out errors of the choice and of the best untuned candidate.
    trials : tuple of Trial
    calls : int
        Network calls in all.
    objective : str
        What was compared: "error", or "distance of" a feature space.
    """

    table: Table
    error: float
    untuned_error: float
    trials: tuple[Trial, ...]
    calls: int
    objective: str = "error"

    @property
    def untuned(self) -> Trial:
        """The best untuned candidate."""
        return min((t for t in self.trials if t.table is not None and not t.tuned), key=lambda t: t.score)

    @property
    def least_error(self) -> Trial:
        """The candidate that the hold-out error alone would have chosen."""
        return min((t for t in self.trials if t.table is not None), key=lambda t: t.error)
