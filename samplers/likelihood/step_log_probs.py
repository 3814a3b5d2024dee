"""Log-probabilities of the random moves of a run, one by one: what policy gradients need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..border import Model
from ..guidance import Guidance
from ..loop import run
from ..noisy_moves import FollowStates, NoisyMove, no_noise, noisy_moves
from ..run_state import Hook, RunState
from ..table import Table


class StepLogProbs(Hook):
    """Records each move's log N(next; mean, spread²) and the states, while a stochastic table runs.

    Give a new one to every run (a run in chunks would mix theirs). `trajectory_log_probs` evaluates the same moves
    under another model, with gradients: their ratio is that of DDPO (Black et al. 2024, arXiv:2305.13301).

    Parameters
    ----------
    table : Table
        The one that is run; one noise in a row, see `noisy_moves`.

    Attributes
    ----------
    states : list of Tensor (B, ...)
        The start and what each move ended in.
    """

    whole_batch = True

    def __init__(self, table: Table) -> None:
        self._moves = {move.row: move for move in noisy_moves(table)}
        self._found: list[Tensor] = []
        self.states: list[Tensor] = []

    @property
    def log_probs(self) -> Tensor:
        """Shape (B, M), in nats, for M moves."""
        return torch.stack(self._found, dim=1)

    def before_model(self, run: RunState, query: Tensor) -> None:
        """Keep the start."""
        if not self.states:
            self.states.append(run.values[0])

    def after_row(self, run: RunState) -> None:
        """Score the move just made."""
        if run.row in self._moves:
            move = self._moves[run.row]
            self._found.append(_log_prob(move, run.values[move.noise]))
            self.states.append(run.values[move.target])


def trajectory_log_probs(
    table: Table,
    model: Model,
    states: Sequence[Tensor],
    *,
    prediction: str = "data",
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    differentiable: bool = True,
) -> Tensor:
    """Log-probability of every move of recorded trajectories under a model, shape (B, M).

    Parameters
    ----------
    table : Table
    states : sequence of M + 1 tensors (B, ...)
        As recorded by `StepLogProbs`, or the chain of `editing.forward_chain`.
    differentiable : bool
        Keep the graph to the model's parameters; states are constants.
    Other parameters are those of `run`. Costs one run of the table.
    """
    found: list[Tensor] = []
    follow = FollowStates(table, states[1:], lambda move, z: found.append(_log_prob(move, z)))
    given: dict[str, Any] = {"prediction": prediction, "model_kwargs": model_kwargs, "guidance": guidance}
    run(table, model, states[0], noise=no_noise, hooks=[follow], differentiable=differentiable, **given)
    return torch.stack(found, dim=1)


def _log_prob(move: NoisyMove, z: Tensor) -> Tensor:
    size = z[0].numel()
    return -0.5 * z.flatten(1).square().sum(1) - size * math.log(abs(move.spread) * math.sqrt(2 * math.pi))
