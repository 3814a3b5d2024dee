"""The random moves of a stochastic table: which state each draws, with which spread, and where it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .nodes import Level
from .run_state import Hook, RunState
from .table import Table


class NoisyMove(NamedTuple):
    """A row's move to `target` = mean + spread·z.

    Attributes
    ----------
    row, slot : int
        Where z is drawn.
    noise : int
        The value z.
    target : int
        The value it makes.
    spread : float
        Standard deviation; negative where the table subtracts z.
    level : Level
        Where the target lies: at the next call there, or at the table's end.
    """

    row: int
    slot: int
    noise: int
    target: int
    spread: float
    level: Level


def noisy_moves(table: Table) -> list[NoisyMove]:
    """Every random move of a table, in order.

    Raises
    ------
    ValueError
        Nothing is random, or a row draws several noises, uses one several times, or with a factor for each coordinate.
    """
    moves = []
    for k, row in enumerate(table.rows):
        drawn = [(slot, z) for slot, z in enumerate(row.noises) if z >= 0]
        if not drawn:
            continue
        slot, z = drawn[0]
        later = [value for other in table.rows[k + 1 :] for value in other.reads()]
        used = [update for update in row.updates if any(v == z for v, _ in update.terms)]
        if len(drawn) > 1 or len(used) != 1 or z in later:
            raise ValueError(
                f"row {k} of {table.method!r} does not move one state by one noise, as ddim with eta, euler-ancestral, "
                "dpm++-sde, sde and er-sde do"
            )
        spread = dict(used[0].terms)[z]
        if not isinstance(spread, float):
            raise ValueError(f"row {k} of {table.method!r} has a noise factor for each coordinate")
        moves.append(NoisyMove(k, slot, z, used[0].target, spread, level_of(table, used[0].target)))
    if not moves:
        raise ValueError(f"table {table.method!r} draws no noise; choose a stochastic method, such as ddim with eta=1")
    return moves


def level_of(table: Table, value: int) -> Level:
    """Level of a state: where the network is called at it, else the end."""
    return next((row.level for row in table.rows if row.query == value), table.end)


class FollowStates(Hook):
    """Makes a run pass through given states and finds the noise that takes it there.

    Parameters
    ----------
    table : Table
    states : sequence of Tensor (B, ...)
        What each of `noisy_moves(table)` ends in.
    found : function (move, z)
        Called with the recovered standard normal of every move.

    Notes
    -----
    Use it with `no_noise` as the run's noise, so that what the loop computes is each move's mean.
    """

    def __init__(self, table: Table, states: Sequence[Tensor], found: Callable[[NoisyMove, Tensor], None]) -> None:
        self._moves = {move.row: (move, state) for move, state in zip(noisy_moves(table), states, strict=True)}
        self._found = found

    def after_row(self, run: RunState) -> None:
        """Put the given state in the place of the mean."""
        if run.row not in self._moves:
            return
        move, state = self._moves[run.row]
        mean = run.values[move.target]
        state = state.to(mean.dtype)
        self._found(move, (state - mean) / move.spread)
        run.values[move.target] = state


def no_noise(row: int, slot: int, like: Tensor) -> Tensor:
    """A noise source of zeros."""
    return torch.zeros_like(like)
