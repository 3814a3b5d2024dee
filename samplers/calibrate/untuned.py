"""What needs no fit: the methods and grids that fits start from, and that they must beat."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..defaults import is_guided
from ..sampling import plan
from ..table import Table
from .trajectories import Problem

METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ipndm", {"order": 3}),
    ("ipndm", {"order": 2, "afs": True}),
    ("unipc", {"order": 2}),
    ("ghvb", {}),
    ("ipndm", {"order": 2}),
    ("dpm++", {"order": 2}),
    ("unipc", {"order": 3}),
    ("ipndm", {"order": 3, "afs": True}),
    ("deis", {"order": 3}),
    ("dpm++", {"order": 3}),
    ("ddim", {}),
)
GRIDS = ("logsnr", "beta", "karras", "dmn", "time", "shifted")
"""Both with those first that are often best: a small budget does not pay for all."""
STARTS = ("karras", "logsnr", "time")
"""Grids that fits start from; the best on their hold-out is the base."""
DEFAULT = "the default of sample"


def untuned_tables(
    problem: Problem,
    nfe: int,
    *,
    methods: Sequence[tuple[str, dict[str, Any]]] | None = None,
    grids: Sequence[str] | None = None,
    analytic: bool = True,
) -> dict[str, Table]:
    """What `sample` runs by itself, then methods on grids (by default `METHODS` on `GRIDS`), by their names.

    Those that are possible with at most `nfe` calls, and with an analytic first step only where `analytic`.
    """
    tables: dict[str, Table] = {}
    own = plan(problem.path, nfe=nfe, prediction=problem.prediction, guided=is_guided(problem.guidance))
    if analytic or own.rows[0].calls_network:
        tables[DEFAULT] = own
    pairs = itertools.product(enumerate(methods or METHODS), enumerate(grids or GRIDS))
    for (_, (method, options)), (_, grid) in sorted(pairs, key=lambda pair: pair[0][0] + pair[1][0]):
        if options.get("afs") and not analytic:
            continue
        try:
            table = plan(problem.path, method, nfe=nfe, grid=grid, **options)
        except ValueError:
            continue  # too few calls for this method, or levels that it cannot use
        tables[f"{method} {_worded(options)}on {grid}"] = table
    return tables


def _worded(options: dict[str, Any]) -> str:
    return "".join(f"{key}={value} " for key, value in options.items())
