"""Measurements of a search, kept in a file so that one that was cut short goes on where it stopped."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import replacing
from ..fitted import described_fit
from ..guidance import ClassifierFree
from .decisions import Decisions
from .extractor import digest_of
from .network_identity import network_told
from .trajectories import Problem


class Memory:
    """Measurements by what was measured, in a file where one is given.

    Parameters
    ----------
    path : path, optional
        JSON file; read where it exists, written anew after every measurement.
    identity : dict of JSON values
        Of the search; a file with another one is refused.

    Raises
    ------
    ValueError
        The file cannot be read or belongs to another search.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.identity = identity
        self.entries: dict[str, float | None] = {}
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def _load(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            identity, entries = content["search"], dict(content["measured"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"state={str(path)!r} is not a readable search state: {error}") from error
        if identity != self.identity:
            other = sorted(k for k in self.identity if identity.get(k) != self.identity[k])
            raise ValueError(f"state={str(path)!r} belongs to another search: {', '.join(other)} differ")
        self.entries = entries

    def get(self, judged: bool, decisions: Decisions) -> float | None:
        """The error, or None where it was not measured."""
        key = _key(judged, decisions)
        if key not in self.entries:
            return None
        value = self.entries[key]
        return math.inf if value is None else value

    def add(self, judged: bool, decisions: Decisions, error: float) -> None:
        """Keep an error, and write the file anew."""
        self.entries[_key(judged, decisions)] = error if math.isfinite(error) else None
        if self.path is not None:
            with replacing(self.path) as stream:
                json.dump({"search": self.identity, "measured": self.entries}, stream, allow_nan=False)


def identity_of(problem: Problem, x_init: Tensor) -> dict[str, Any]:
    """Network, conditions and starts as JSON values.

    The network is told by its weights where it is a torch module or wraps one (`.network`), else by what it returns
    for the first sample at two times, which costs two calls.
    """
    guidance = problem.guidance
    given = {**problem.model_kwargs}
    if isinstance(guidance, ClassifierFree):
        given |= {f"unconditional {key}": value for key, value in guidance.unconditional.items()}
    return {
        "network": described_fit(path=problem.path, prediction=problem.prediction, guidance=guidance),
        "weights": network_told(problem, x_init[:1], len(x_init)),
        "conditions": digest_of({key: value for key, value in given.items() if isinstance(value, Tensor)}),
        "x_init": digest_of({"x_init": x_init}),
    }


def _key(judged: bool, decisions: Decisions) -> str:
    return json.dumps([judged, decisions.content()])
