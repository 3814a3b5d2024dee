"""Where a descent stands, kept in a file after every round so that one that was cut short goes on there."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import replacing


@dataclass
class DescentState:
    """Everything that the next round depends on.

    Attributes
    ----------
    key : str
        Of what is descended; a file with another one is refused.
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
    course : list of (float, float)
    calls : int
        Network calls since the descent began.
    """

    key: str
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
    course: list[tuple[float, float]] = field(default_factory=list)
    calls: int = 0

    @classmethod
    def open(cls, file: str | os.PathLike[str] | None, key: str) -> DescentState:
        """What a file holds, or the beginning.

        Raises
        ------
        ValueError
            It cannot be read, or belongs to another descent.
        """
        if file is None or not Path(file).exists():
            return cls(key)
        try:
            found = cls(**torch.load(file, map_location="cpu", weights_only=True))
        except Exception as reason:  # a damaged pickle raises nearly anything
            raise ValueError(f"state={str(file)!r} is not a readable state of a descent: {reason}") from reason
        if found.key != key:
            raise ValueError(f"state={str(file)!r} belongs to a descent of other starts, settings or features")
        return found

    def save(self, file: str | os.PathLike[str] | None) -> None:
        """Write, where there is a file."""
        if file is not None:
            with replacing(Path(file), "wb") as stream:
                torch.save({f.name: getattr(self, f.name) for f in fields(self)}, stream)

    def next_phase(self) -> None:
        """Begin the next phase from the best point."""
        self.phase, self.done, self.waited, self.fallen, self.rates, self.rule = self.phase + 1, 0, 0, 0, {}, {}
