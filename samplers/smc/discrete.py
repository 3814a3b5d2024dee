"""Weights that are exact at any step size, where the log densities of the branches are known.

With target π_k at node k, a Gaussian move K from x to x' and the noising move L back from x' to x, log-weights grow by

    log π_{k+1}(x') − log π_k(x) + log L(x | x') − log K(x' | x),

which is unbiased for ∫π_K/∫π_0 whatever the steps (Del Moral, Doucet and Jasra 2006, "Sequential Monte Carlo
samplers"; Thornton et al. 2025, arXiv:2502.12786). Where the laws are still pure noise, the moves of
`DiscreteFeynmanKac` are each other's exact reversal, so that the weights do not spread there, unlike those of
`FeynmanKac` for W ≠ 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..guidance.protocol import Network, RowStep, row_step
from ..nodes import Level
from ..run_state import RunState
from .composition import Composition
from .particles import Particles, Ranks
from .population import Policy
from .rewards import CountedReward
from .start_law import start_log_density


class DiscreteFeynmanKac(Particles):
    """Samples a `Composition` whose branches have log densities: pass it as `guidance` of `sample` or `run`.

    The proposal is the method's own step with the mean output Σ w_i·output_i / W and its draws divided by √W
    (`proposals.with_noise_factor`; `smc_sample` sees to it), the move back the path's noising with variance divided by
    W. Any method does whose rows are one Gaussian move each ("ddpm", "ddim" with eta > 0, "sde" …); the grid must end
    at a noise above 0. Rewards act through the weights alone and need no gradient; one of −inf (a hard constraint)
    belongs to the last level, since a particle that was forbidden once never comes back.

    Parameters
    ----------
    target : Composition
        Every branch with a `log_density`.
    policy, window, ranks : as in `Particles`
        A window is not possible here: leave it whole.
    from_start_law : bool
        Weigh the start by target over start law N(0, noise²/W), so that log Ẑ is that of ∫π_K itself, without bias;
        False if the start is drawn from π_0.
    """

    def __init__(
        self,
        target: Composition,
        policy: Policy | None = None,
        *,
        ranks: Ranks | None = None,
        from_start_law: bool = True,
    ) -> None:
        super().__init__(policy, ranks=ranks)
        if any(branch.log_density is None for branch in target.branches):
            raise ValueError("every branch needs a log_density for exact weights; FeynmanKac does without")
        self.target = target
        self.from_start_law = from_start_law
        self.branch_calls = 0
        self._levels: list[Level] = []
        self._moves: list[RowStep] = []
        self._before: tuple[Tensor, Tensor] | None = None

    def begin(self, run: RunState) -> None:
        """Check that every row is one Gaussian move along the path."""
        self.branch_calls = 0
        self._levels = [*(row.level for row in run.table.rows), run.table.end]
        self._moves = []
        for k, row in enumerate(run.table.rows):
            move = row_step(run.table, k)
            if not (row.calls_network and move.fresh > 0.0 and self._levels[k].lam < self._levels[k + 1].lam):
                raise ValueError(
                    f"row {k} of method {run.table.method!r} is not one stochastic step forward (to noise "
                    f"{self._levels[k + 1].noise:g}); take a method with one call and one draw in each step, and end "
                    "the grid at a noise above 0"
                )
            self._moves.append(move)

    def counted(self) -> CountedReward | None:
        """The reward of the tilt."""
        return self.target.reward

    def initial_log_weights(self, run: RunState) -> Tensor | None:
        """Target over start law."""
        if not self.from_start_law:
            return None
        x = run.values[0]
        return self.log_target(x, run.table.start) - start_log_density(x, self.target, run.table.start)

    def log_target(self, x: Tensor, level: Level) -> Tensor:
        """Σ w_i·log q_i + scale·reward at a level, (B,) in float64."""
        terms = [b.weight * b.log_density(x, level).double() for b in self.target.branches if b.log_density is not None]
        total = torch.stack(terms).sum(0)
        scale = self.target.scale(level.clock)
        if self.target.reward is not None and scale != 0.0:
            total = total + scale * self.target.reward(x)
        return total

    def before_model(self, run: RunState, query: Tensor) -> None:
        """Keep the state the step starts from, and the target there."""
        super().before_model(run, query)
        known = run.extras.get("log_target")
        here = self.log_target(query, self._levels[run.row]) if known is None else known
        self._before = (query, here)

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Mean output of the branches."""
        branches, total = self.target.branches, self.target.total
        self.branch_calls += len(branches)
        outputs = [branch(network, x, t, kwargs) for branch in branches]
        if len(outputs) == 1:
            return outputs[0]
        return torch.stack([output * (b.weight / total) for b, output in zip(branches, outputs, strict=True)]).sum(0)

    def log_increment(self, run: RunState) -> Tensor | None:
        """The step's exact weight."""
        assert self._before is not None
        move, (x, before) = self._moves[run.row], self._before
        assert move.noise_value is not None
        moved, z = run.values[move.target], run.values[move.noise_value]
        start, end = self._levels[run.row], self._levels[run.row + 1]
        ratio = start.signal / end.signal
        back = math.sqrt((start.noise**2 - ratio**2 * end.noise**2) / self.target.total)
        after = self.log_target(moved, end)
        run.extras["log_target"] = after
        before = torch.where(before == -torch.inf, after, before)  # the weight is 0 already and stays so
        noised = log_normal(x.double() - ratio * moved.double(), back)
        return (
            torch.where(after == before, 0.0, after - before) + noised - log_normal(z.double() * move.fresh, move.fresh)
        )


def log_normal(centred: Tensor, std: float) -> Tensor:
    """Log density (B,) of N(0, std²·I) at centred states (B, ...)."""
    flat = centred.reshape(len(centred), -1)
    return -0.5 * (flat / std).square().sum(1) - flat.shape[1] * (math.log(std) + 0.5 * math.log(2 * math.pi))
