"""Where a fit stands, kept in a file after every round so that one that was cut short goes on there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..files import replacing
from ..numerics import Array


@dataclass
class KeptState:
    """Base of everything that the next round of a fit depends on: numbers, texts, tensors, lists and dicts of them.

    Attributes
    ----------
    key : str
        Of what is fitted; a file with another one is refused.
    course : list of (float, float)
        Training and hold-out error after every round.
    calls : int
        Network calls since the fit began.
    """

    what: ClassVar[str]

    key: str
    course: list[tuple[float, float]] = field(default_factory=list)
    calls: int = 0

    @classmethod
    def open(cls, file: str | os.PathLike[str] | None, key: str) -> Self:
        """What a file holds, or the beginning.

        Raises
        ------
        ValueError
            It cannot be read, or belongs to another fit.
        """
        if file is None or not Path(file).exists():
            return cls(key)
        try:
            found = cls(**torch.load(file, map_location="cpu", weights_only=True))
        except Exception as reason:  # a damaged pickle raises nearly anything
            raise ValueError(f"state={str(file)!r} is not a readable state of a {cls.what}: {reason}") from reason
        if found.key != key:
            raise ValueError(f"state={str(file)!r} belongs to a {cls.what} of other starts, settings or features")
        return found

    def save(self, file: str | os.PathLike[str] | None) -> None:
        """Write, where there is a file."""
        if file is not None:
            with replacing(Path(file), "wb") as stream:
                torch.save({f.name: getattr(self, f.name) for f in fields(self)}, stream)


@dataclass
class DescentState(KeptState):
    """Where a descent stands.

    Attributes
    ----------
    phase, done : int
        Phase of the schedule, and rounds of it that are done.
    waited, fallen : int
        Rounds without a better hold-out, and how often the rates fell.
    rates : dict
        By which the rule was made last; empty for those of the schedule.
    best : (float, float)
    point, parameters : dict of Tensor
        The best, and where the parameters are.
    rule : dict
        State of the optimiser; empty for a new one.
    order, shift : Tensor or None
        State of the generator that orders the batches; moves of the starts.
    """

    what = "descent"

    phase: int = 0
    done: int = 0
    waited: int = 0
    fallen: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    best: tuple[float, float] = (float("inf"), float("inf"))
    point: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    order: Tensor | None = None
    shift: Tensor | None = None

    def next_phase(self) -> None:
        """Begin the next phase from the best point."""
        self.phase, self.done, self.waited, self.fallen, self.rates, self.rule = self.phase + 1, 0, 0, 0, {}, {}


@dataclass
class LevelState(KeptState):
    """Where a search of levels stands.

    Attributes
    ----------
    last, best : (levels λ (N,), weights of N + 1 rows)
        The last point, and the best by the hold-out, see `kept_rows`.
    residual : Tensor (B, ...) or None
        Of the last point.
    damping : float
    """

    what = "search of levels"

    last: tuple[Tensor, list[Tensor]] | None = None
    best: tuple[Tensor, list[Tensor]] | None = None
    residual: Tensor | None = None
    damping: float = 0.0


def kept_rows(lam: Array, weights: tuple[Array, ...]) -> tuple[Tensor, list[Tensor]]:
    """Levels and rows as a file keeps them."""
    return torch.from_numpy(lam), [torch.from_numpy(row) for row in weights]
