"""Feynman–Kac steering: particles weighted by the reward of the data they are heading for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pathline.interpolants import check_name

from ..run_state import RunState
from ..smc import Particles, Policy, Ranks
from .data_reward import DataReward, as_data_reward
from .moments import Checkpoints, DataHook

POTENTIALS = ("difference", "max", "sum", "plain")
TOTAL, BEST, FINAL = "steering_total", "steering_best", "final_reward"


class Steering(DataHook, Particles):
    """FK steering (Singhal et al. 2025, arXiv:2501.06848) towards p(data)·exp(scale·reward): a hook of any run.

    At every checkpoint the log-weights grow by a potential of the rewards so far, r_k that of the data predicted there:

    - "difference": scale·(r_k − r_{k−1}), with `least` before the first;
    - "max", "sum", "plain": scale·max_{j≤k} r_j, scale·Σ_{j≤k} r_j, scale·r_k.

    The end takes back what came before, so that with every potential the weights along a path multiply to
    exp(scale·(r(result) − least)): the target is the same, what differs is which particles survive on the way. The
    proposal is the run's own method, which must draw noise.

    Parameters
    ----------
    reward : DataReward, or a function of data (B, ...) -> (B,)
        −inf forbids at once, also where the data predicted early on may yet change: a hard constraint belongs to the
        end (checkpoints=None). A particle once forbidden stays so, unless all are.
    policy : Policy, optional
        By default systematic resampling where ESS < N/2; `Policy(ess=1.0)` resamples at every checkpoint.
    scale : float
        λ, one over the temperature; 0 is the method itself, bit by bit.
    potential : {"difference", "max", "sum", "plain"}
    least : float
        r_min; shifts all rewards, and log Ẑ with them.
    checkpoints : int, rows of the table, or None
        Every so many steps, by default each but the first; the result always counts.
    window, ranks : as in `Particles`

    Attributes
    ----------
    reward : DataReward
        Counts calls.
    population, log_z(), log_z_error() : as in `Particles`; log Ẑ is that of E[exp(scale·(reward − least))]
    """

    def __init__(
        self,
        reward: DataReward | Callable[[Tensor], Tensor],
        policy: Policy | None = None,
        *,
        scale: float = 1.0,
        potential: str = "difference",
        least: float = 0.0,
        checkpoints: Checkpoints = 1,
        window: tuple[float, float] = (0.0, 1.0),
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(policy, window=window, ranks=ranks)
        if not (math.isfinite(scale) and math.isfinite(least)):
            raise ValueError(f"scale={scale!r} and least={least!r} must be finite")
        self.reward = as_data_reward(reward)
        self.scale = float(scale)
        self.potential = check_name("potential", potential, POTENTIALS)
        self.least = float(least)
        self.checkpoints = checkpoints

    def counted(self) -> DataReward:
        """The reward."""
        return self.reward

    def prepare(self, run: RunState) -> None:
        """Begin a population."""
        super().prepare(run)
        self.started(run)

    def due(self, run: RunState) -> bool:
        """Rows of the checkpoints that lie in the window."""
        return super().due(run) and self.in_window(run)

    def at_data(self, run: RunState, data: Tensor) -> None:
        """Weigh by the potential of the data predicted here, and resample if the policy says so."""
        self.weigh(run, self._gain(run, self.reward.at(data, run.table.rows[run.row].level)))

    def at_end(self, run: RunState) -> None:
        """Weigh by what the result deserves in all."""
        run.extras[FINAL] = final = self.reward.at(run.values[run.table.result], run.table.end)
        self.weigh(run, self._gain(run, final, last=True), last=True)

    def _gain(self, run: RunState, reward: Tensor, last: bool = False) -> Tensor:
        """What a checkpoint adds to the log-weights (B,)."""
        here = self.scale * reward if self.scale else torch.zeros_like(reward)
        whole = here - self.scale * self.least
        given = run.extras.get(TOTAL, torch.zeros_like(here))
        given = torch.where(given == -torch.inf, 0.0, given)  # weight 0 already; counted afresh where all were
        if last or self.potential == "difference":
            gain = whole - given
        elif self.potential == "plain":
            gain = here
        else:
            best = run.extras.get(BEST)
            together = torch.maximum if self.potential == "max" else torch.add
            run.extras[BEST] = gain = here if best is None else together(best, here)
        run.extras[TOTAL] = given + gain
        return gain
