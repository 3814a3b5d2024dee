"""The noising process through the levels of a table, and windows of tables that editing runs on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath

from ..grids import make_nodes
from ..keyed_noise import keyed_normal
from ..nodes import Level, Nodes
from ..noisy_moves import noisy_moves
from ..registry import build_table
from ..table import Table

CHAIN_SLOT = 101
"""Slot under which a row's forward noise is drawn, beyond those of methods."""


def renoise(x: Tensor, start: Level, end: Level, noise: Tensor) -> Tensor:
    """A state at `start` taken to the noisier `end` by the noising process with a standard normal `noise`.

    x' = (signal'/signal)·x + √(noise'² − (signal'/signal·noise)²)·z, on any Gaussian path.

    Raises
    ------
    ValueError
        `end` is not noisier than `start`.
    """
    keep = end.signal / start.signal if start.signal else math.inf
    left = end.noise**2 - (keep * start.noise) ** 2
    if not left >= 0.0:
        raise ValueError(
            f"renoising goes to more noise, not from signal {start.signal:g}, noise {start.noise:g} to signal "
            f"{end.signal:g}, noise {end.noise:g}"
        )
    return keep * x + math.sqrt(left) * noise


def forward_chain(
    table: Table, x: Tensor, *, seed: int = 0, samples: Sequence[int] | Tensor | None = None
) -> list[Tensor]:
    """States of the noising process at the levels of a table, from its start on, ending in `x` at the table's end.

    Parameters
    ----------
    table : Table
        Stochastic, with one noise in a row; see `noisy_moves`.
    x : Tensor (B, ...)
        Taken as the state at the table's end.
    seed, samples
        Key of the noise, as in `run`.

    Returns
    -------
    list of M + 1 tensors (B, ...), one for the start and one for each move, in float32 or wider

    Raises
    ------
    ValueError
        The levels do not get cleaner, or the table has steps after its last random move, so that x is not reached.
    """
    moves = noisy_moves(table)
    if moves[-1].target != table.result:
        raise ValueError(
            f"{table.method!r} ends with a step without noise, after which no given image can be reached; build it on "
            "a grid that ends at a little noise: make_nodes(..., final='path') or editing_table(...)"
        )
    index = torch.arange(len(x), device=x.device) if samples is None else torch.as_tensor(samples, device=x.device)
    state = x.to(torch.promote_types(x.dtype, torch.float32))
    chain, level = [state], moves[-1].level
    for number in range(len(moves) - 1, -1, -1):
        higher = table.start if number == 0 else moves[number - 1].level
        z = keyed_normal(x.shape[1:], seed, index, moves[number].row, CHAIN_SLOT, dtype=state.dtype, device=x.device)
        state, level = renoise(state, level, higher, z), higher
        chain.insert(0, state)
    return chain


def editing_nodes(
    path: GaussianPath, steps: int, strength: float = 1.0, *, grid: str = "time", **options: Any
) -> Nodes:
    """The clean end of a grid: the last round(strength·steps) of `steps` steps, ending at a little noise.

    Parameters
    ----------
    path : GaussianPath
    steps : int
        Steps of the whole grid.
    strength : float in (0, 1]
        Share of the steps that is run, as in diffusers' image-to-image pipelines.
    grid, options : as in `make_nodes`

    Raises
    ------
    ValueError
        A strength that leaves no step.
    """
    kept = round(strength * steps)
    if not 0.0 < strength <= 1.0 or kept < 1:
        raise ValueError(f"strength={strength!r} of {steps} steps is not possible; it must leave 1 to {steps} steps")
    return make_nodes(path, grid, steps, final="path", **options).part(steps - kept)


def editing_table(
    path: GaussianPath,
    steps: int,
    strength: float = 1.0,
    *,
    method: str = "ddim",
    grid: str = "time",
    **options: Any,
) -> Table:
    """A table of `method` on `editing_nodes`; `ddim` has eta=1 unless it is given."""
    given = {"eta": 1.0, **options} if method == "ddim" else options
    return build_table(method, editing_nodes(path, steps, strength, grid=grid), **given)
