"""Where a search of levels stands, kept in a file after every round so that one that was cut short goes on there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import replacing
from ..numerics import Array
from .triangular import Triangular


@dataclass
class LevelState:
    """Everything that the next round depends on.

    Attributes
    ----------
    key : str
        Of what is searched; a file with another one is refused.
    lam, best_lam : array (N,)
        Levels of the last point, and of the best by the hold-out.
    weights, best_weights : sequence of arrays
        Their rows.
    residual : Tensor (B, ...)
        Of the last point.
    damping : float
    course : list of (float, float)
        Training and hold-out error after every round.
    calls : int
        Network calls since the search began.
    """

    key: str
    lam: Array = field(default_factory=lambda: np.zeros(0))
    best_lam: Array = field(default_factory=lambda: np.zeros(0))
    weights: Sequence[Array] = ()
    best_weights: Sequence[Array] = ()
    residual: Tensor = field(default_factory=lambda: torch.zeros(0))
    damping: float = 0.0
    course: list[tuple[float, float]] = field(default_factory=list)
    calls: int = 0

    @classmethod
    def open(cls, file: str | os.PathLike[str] | None, key: str) -> LevelState:
        """What a file holds, or the beginning.

        Raises
        ------
        ValueError
            It cannot be read, or belongs to another search.
        """
        if file is None or not Path(file).exists():
            return cls(key)
        try:
            with np.load(file, allow_pickle=False) as kept:
                rows = range(int(kept["rows"]))
                weights, best = ([kept[f"{name} {i}"] for i in rows] for name in ("weights", "best"))
                course = [(float(a), float(b)) for a, b in kept["course"]]
                residual, damping, calls = (
                    torch.from_numpy(kept["residual"]),
                    float(kept["damping"]),
                    int(kept["calls"]),
                )
                found = cls(
                    str(kept["key"]), kept["lam"], kept["best lam"], weights, best, residual, damping, course, calls
                )
        except Exception as reason:  # a damaged archive raises nearly anything
            raise ValueError(f"state={str(file)!r} is not a readable state of a search of levels: {reason}") from reason
        if found.key != key:
            raise ValueError(f"state={str(file)!r} belongs to a search of levels from other starts or levels")
        return found

    def save(self, file: str | os.PathLike[str] | None) -> None:
        """Write, where there is a file."""
        if file is None:
            return
        arrays: dict[str, Any] = {f"weights {i}": w for i, w in enumerate(self.weights)}
        arrays |= {f"best {i}": w for i, w in enumerate(self.best_weights)}
        arrays |= {"lam": self.lam, "best lam": self.best_lam, "course": np.array(self.course)}
        arrays |= {"key": self.key, "rows": len(self.weights), "residual": self.residual.cpu().numpy()}
        arrays |= {"damping": self.damping, "calls": self.calls}
        with replacing(Path(file), "wb") as stream:
            np.savez(stream, **arrays)

    def rows(self, build: Callable[[Array], Triangular], *, best: bool) -> Triangular:
        """The last point's rows, or the best's."""
        lam, weights = (self.best_lam, self.best_weights) if best else (self.lam, self.weights)
        return replace(build(lam), weights=tuple(weights))
