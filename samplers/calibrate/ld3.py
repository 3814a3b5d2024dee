"""LD3: levels learned through the sampler, and the times the network is told learned apart from them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .descent import Schedule
from .extractor import Extractor
from .gradient import Task, Trained, solve, whitened
from .row_fits import Reference
from .trajectories import Problem
from .untuned import STARTS

_RATES = {"levels": 0.05, "labels": 0.05}
_RADIUS = 1e-3


def learn_levels(
    problem: Problem,
    x_init: Tensor,
    nfe: int,
    *,
    method: str = "unipc",
    options: Mapping[str, Any] | None = None,
    grids: Sequence[str] = STARTS,
    labels: bool = True,
    loss: str = "end",
    extractor: Extractor | None = None,
    mean: Tensor | None = None,
    radius: float | None = None,
    rounds: tuple[int, int] = (2, 5),
    batch: int = 2,
    holdout: float | int = 0.5,
    seed: int = 0,
    chunk: int | None = None,
    reference: Reference | None = None,
    state: str | os.PathLike[str] | None = None,
) -> Trained:
    """Levels and labels of an exact method that bring its ends to the teacher's (Tong et al. 2025, LD3).

    Levels are cumulative softmax shares of the range of λ; the network is told the time of λ + ξ with |ξ| at most half
    of the smallest distance of two levels, where rows and conversions keep λ. First the levels move, then both.
    The coefficients remain those of the method on its levels, and so does its frame.

    As published: batches of 2, 2 and 5 rounds, gradients clipped at norm 1, as many samples to judge as to fit, the
    relaxed teacher (radius). Different here: Adam instead of RMSprop with momentum, whose first steps, where there are
    few, are the largest; the start is not among the learned levels, but the last call is; starts move by a quarter of
    the radius at a time, so that no rate depends on the loss's units; the teacher is the converged end.

    Parameters
    ----------
    method, options : the base: any deterministic method with scalar coefficients
    labels : bool
        Learn ξ; False is the coupled variant.
    loss, extractor : as in `train_rows`; published are LPIPS for images and "end" for latents
    radius : float ≥ 0, optional
        Of the ball of starts, in the norm of unit noise; by default 0.001·(values of a sample)/nfe², 0 is none.
    rounds : (int, int)
        Of levels alone, and of both.

    Others, result and errors are those of `train_rows`.
    """
    radius = _RADIUS * x_init[0].numel() / max(nfe, 1) ** 2 if radius is None else radius
    both = ("levels", "labels") if labels else ("levels",)
    phases = [(rounds[0], ("levels",)), (rounds[1], both)]
    schedule = Schedule(phases, _RATES, batch=batch, radius=radius, seed=seed)
    task = Task("ld3", method, dict(options or {}), tuple(grids), schedule, loss, extractor, whitened)
    return solve(task, problem, x_init, nfe, mean=mean, holdout=holdout, chunk=chunk, reference=reference, state=state)
