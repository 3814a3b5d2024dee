"""The registry of adaptive methods: like that of tables, but each entry is a function that integrates."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pathline.interpolants import unknown_name

from ..registry import Reference

Solve = Callable[..., Tensor]


@dataclass(frozen=True)
class AdaptiveInfo:
    """A registered adaptive method.

    Attributes
    ----------
    name : str
    solve : function (problem, x, **options) -> Tensor
    summary : one line
    reference : Reference
    options : keyword options with their defaults; `per_sample` runs every sample by itself
    stochastic : bool
        True where the method solves a stochastic differential equation.
    requires : library it needs beyond the dependencies of pathline, "" when none
    """

    name: str
    solve: Solve
    summary: str
    reference: Reference
    options: dict[str, Any]
    stochastic: bool = False
    requires: str = ""

    @property
    def bibtex(self) -> str:
        """BibTeX entry of the reference."""
        return self.reference.bibtex


_METHODS: dict[str, AdaptiveInfo] = {}


def register_adaptive(
    name: str, solve: Solve, *, summary: str, reference: Reference, stochastic: bool = False, requires: str = ""
) -> None:
    """Add an adaptive method.

    Parameters
    ----------
    name : str
        How `sample(..., method=name)` finds it.
    solve : function (problem, x, *, options with defaults) -> Tensor
        Takes the state at `problem.start` and returns the one at `problem.end`.
    summary, reference, stochastic, requires : see `AdaptiveInfo`

    Raises
    ------
    ValueError
        The name is taken.
    """
    if name in _METHODS:
        raise ValueError(f"adaptive method {name!r} is already registered")
    parameters = inspect.signature(solve).parameters.values()
    # torchsde knows only the error of a whole batch, which must not decide where a sample's noise path is asked
    options = {"per_sample": stochastic} | {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    _METHODS[name] = AdaptiveInfo(name, solve, summary, reference, options, stochastic, requires)


def list_adaptive() -> list[str]:
    """Names of all adaptive methods; `sample` takes them beside those of `list_methods()`."""
    return sorted(_METHODS)


def adaptive_info(name: str) -> AdaptiveInfo:
    """The registered facts of an adaptive method.

    Raises
    ------
    ValueError
        Unknown name; the message lists the nearest ones.
    """
    if name not in _METHODS:
        raise unknown_name("adaptive method", name, _METHODS)
    return _METHODS[name]
