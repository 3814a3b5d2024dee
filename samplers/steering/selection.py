"""Selection within groups of candidates: best of N, SVDD, CoDe, and the choices of a search over paths."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..keyed_noise import keyed_normal
from ..run_state import RunState
from .data_reward import DataReward, as_data_reward
from .moments import Checkpoints, DataHook
from .steered_particles import FINAL

SELECTION_SLOT = 103
"""Slot under which a row's choices are drawn, beyond those of methods and editing."""


class Selection(DataHook):
    """Keeps the best of each group of candidates, which then fill the group: a hook of any run.

    The batch is G groups of `candidates` in a row, one group for each sample wanted. With

    - checkpoints=None it is best of N: complete runs, the best kept; KL to the model is log N − (N − 1)/N;
    - checkpoints=1, temperature=α it is SVDD (Li et al. 2024, arXiv:2408.08252): at every step one of M proposals is
      chosen with probability ∝ exp(reward/α), as released α = 0;
    - checkpoints=L it is CoDe (Singh et al. 2025, arXiv:2502.00968), best of N for blocks of L steps.

    It changes the law of the samples as little as the reward asks for or as much as greed gives; no weights, so no
    target is exact. NFE of one sample is `candidates` times that of the method.

    Parameters
    ----------
    reward : DataReward, or a function of data (B, ...) -> (B,)
        Where every candidate of a group has −inf, the group stays as it is, with a warning; +inf is refused. On an
        accelerator both are found at the end, so that no step waits for the host.
    candidates : int ≥ 1
        With 1 the run is the method's own, bit by bit.
    keep : int
        How many of a group survive; the others become copies of these, in turn.
    checkpoints : int, rows of the table, or None
        Every so many steps, and always at the end.
    temperature : float ≥ 0
        0 keeps the best; above it survivors are drawn one after another without replacement (Gumbel top-k).
    """

    def __init__(
        self,
        reward: DataReward | Callable[[Tensor], Tensor],
        candidates: int,
        *,
        keep: int = 1,
        checkpoints: Checkpoints = 1,
        temperature: float = 0.0,
    ) -> None:
        if not (isinstance(candidates, int) and candidates >= 1):
            raise ValueError(f"candidates={candidates!r} is not possible; it must be a whole number, at least 1")
        if not (isinstance(keep, int) and 1 <= keep <= candidates):
            raise ValueError(f"keep={keep!r} is not possible; it must be from 1 to candidates={candidates}")
        if not 0.0 <= temperature < math.inf:
            raise ValueError(f"temperature={temperature!r} is not possible; it must be finite and not negative")
        self.reward = as_data_reward(reward)
        self.candidates, self.keep, self.temperature = candidates, keep, float(temperature)
        self.checkpoints = checkpoints

    def prepare(self, run: RunState) -> None:
        """Check that the batch is whole groups."""
        super().prepare(run)
        self._odd: list[tuple[int, Tensor, Tensor]] = []
        if len(run.samples) % self.candidates:
            raise ValueError(f"a batch of {len(run.samples)} is not made of groups of {self.candidates} candidates")

    def at_data(self, run: RunState, data: Tensor) -> None:
        """Choose by the data predicted here."""
        self._choose(run, self.reward.at(data, run.table.rows[run.row].level), run.row)

    def at_end(self, run: RunState) -> None:
        """Choose by the result."""
        run.extras[FINAL] = final = self.reward.at(run.values[run.table.result], run.table.end)
        self._choose(run, final, run.row + 1)
        self.reward.report()
        self._report()

    def survivors(self, values: Tensor) -> Tensor:
        """Of a batch (B, ...) after the end: (G·keep, ...), what each group has kept."""
        grouped = values.reshape(-1, self.candidates, *values.shape[1:])
        return grouped[:, : self.keep].flatten(0, 1)

    def _choose(self, run: RunState, rewards: Tensor, moment: int) -> None:
        if self.candidates == 1:
            return
        grouped = rewards.reshape(-1, self.candidates)
        hopeless = (grouped == -torch.inf).all(1, keepdim=True)
        self._odd.append((run.row, hopeless.sum(), (rewards == torch.inf).sum()))
        if rewards.device.type == "cpu":
            self._report()
        keys = grouped
        if self.temperature:
            z = keyed_normal((), run.seed, run.samples, moment, SELECTION_SLOT, dtype=rewards.dtype)
            gumbel = -torch.log(-torch.special.log_ndtr(z.to(rewards.device)))
            keys = grouped / self.temperature + gumbel.reshape_as(grouped)
        kept = keys.topk(self.keep, dim=1).indices
        own = torch.arange(self.candidates, device=kept.device)
        chosen = torch.where(hopeless, own, kept[:, own % self.keep])
        first = torch.arange(len(grouped), device=kept.device)[:, None] * self.candidates
        run.gather((first + chosen).flatten())

    def _report(self) -> None:
        """Say what was wrong with the rewards since the last report."""
        noted, self._odd = self._odd, []
        for row, hopeless, infinite in noted:
            if bool(infinite):
                raise ValueError(f"a reward is +inf at row {row}; rewards must be finite or −inf")
            if bool(hopeless):
                groups = f"every candidate of {int(hopeless)} groups has reward −inf"
                warnings.warn(f"{groups} at row {row}: they go on unselected", stacklevel=5)


def best_of_n_divergence(candidates: int) -> float:
    """KL of best-of-N samples from the model's law, log N − (N − 1)/N, for rewards without ties.

    Raises
    ------
    ValueError
        N below 1.
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates!r} is not possible; it must be at least 1")
    return math.log(candidates) - (candidates - 1) / candidates
