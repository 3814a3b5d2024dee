"""Twisted diffusion: particles pulled towards reward by its gradient through the network, and weighted exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..guidance import Guidance
from ..guidance.gradients import gradient
from ..guidance.protocol import Network, Place, RowStep, guided_output, row_step
from ..run_state import RunState
from ..smc import Chunked, Policy, Ranks, next_temperature
from ..smc.particles import GuidedParticles
from .data_reward import DataReward, as_data_reward
from .steered_particles import FINAL

TWIST, SLOPE, VALUE = "twist_left", "twist_slope", "twist_value"
ADAPTIVE = "adaptive"


class Twisted(GuidedParticles):
    """Twisted diffusion sampler (Wu et al. 2023, arXiv:2306.17775) and DAS (Kim et al. 2025, arXiv:2501.05803).

    Pass it as `guidance` of `sample` or `run`. With twist ψ_k(x) = scale·λ_k·reward(data predicted at x), each random
    move N(mean, v) goes to mean + v·scale·λ_{k+1}·∇reward, and log-weights grow by ψ_{k+1}(x') − ψ_k(x) plus the log
    ratio of the two moves, so that the target p(data)·exp(scale·reward) is exact for any number of steps of the method.
    One backward pass through the network for each particle and step; the method's random rows must each be one whole
    step (ddim with eta, ddpm, euler-ancestral, sde …).

    Parameters
    ----------
    reward : DataReward, or a differentiable function of data (B, ...) -> (B,)
        For a posterior log p(y|data); a `DataReward(..., takes_level=True)` can widen it by the spread of the data.
    policy : Policy, optional
    scale : float
    temperatures : sequence of float or "adaptive", optional
        λ_k for every step and 1 for the end, as `das_temperatures` gives; by default all 1 (TDS). "adaptive" begins at
        0 and takes at each step the largest λ at which the ESS of what it adds is policy.ess·N (DAS), which makes log Ẑ
        slightly biased; where 1 is not reached on the way, the end takes the rest.
    shift : bool
        False leaves the moves as they are (bootstrap), at the same target; no gradients are taken then.
    inner : guidance, optional
        Makes the network's output, such as ClassifierFree.
    chunk_size : int, optional
        Largest batch that is differentiated at once; not together with `inner`.
    window, ranks : as in `Particles`
        Outside the window nothing is pulled or weighted; the weights make it good later.
    """

    def __init__(
        self,
        reward: DataReward | Callable[[Tensor], Tensor],
        policy: Policy | None = None,
        *,
        scale: float = 1.0,
        temperatures: Sequence[float] | str | None = None,
        shift: bool = True,
        inner: Guidance | None = None,
        chunk_size: int | None = None,
        window: tuple[float, float] = (0.0, 1.0),
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(policy, window=window, ranks=ranks)
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale!r} must be finite")
        if chunk_size is not None and inner is not None:
            raise ValueError("chunk_size would part a batch that the inner guidance must see whole; leave one out")
        self.reward = as_data_reward(reward)
        self.scale, self.shift, self.inner, self.chunk_size = float(scale), shift, inner, chunk_size
        self.adaptive = isinstance(temperatures, str)
        if self.adaptive and (temperatures != ADAPTIVE or not 0.0 < self.policy.ess < 1.0):
            raise ValueError(
                f"temperatures={temperatures!r} with policy.ess={self.policy.ess!r} is not possible; give numbers, or "
                f"{ADAPTIVE!r} and an ess between 0 and 1"
            )
        self.temperatures = [] if temperatures is None or self.adaptive else [float(t) for t in temperatures]
        self._factors: list[float] = []
        self._moves: list[RowStep | None] = []
        self._twist: Tensor | None = None

    def begin(self, run: RunState) -> None:
        """Check that every random row is one step, and lay out the temperatures."""
        table = run.table
        if self.shift and not table.stochastic:
            raise ValueError(
                f"table {table.method!r} draws no noise, so that nothing can be pulled; take ddim with eta=1"
            )
        draws = [any(z >= 0 for z in row.noises) for row in table.rows]
        self._moves = [row_step(table, k) if drawn else None for k, drawn in enumerate(draws)]
        count = len(table.rows)
        given = [*[0.0] * count, 1.0] if self.adaptive else self.temperatures or [1.0] * (count + 1)
        if len(given) != len(table.rows) + 1 or given[-1] != 1.0:
            raise ValueError(
                f"temperatures has {len(given)} entries and ends in {given[-1]:g}; {len(table.rows) + 1} are needed, "
                "one for each step and 1 for the end"
            )
        self._factors = [self.scale * t for t in given]
        self._twist = None

    def counted(self) -> DataReward:
        """The reward."""
        return self.reward

    def at(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place) -> Tensor:
        """The network's output; keeps the reward of its data prediction and the gradient by the state."""
        self._entered = True
        if place.row is None:
            raise ValueError("Twisted needs a table of fixed rows; adaptive methods have none")
        assert self._run is not None
        self._twist = None
        if not (self.scale and self.in_window(self._run)):
            return self._output(network, x, t, kwargs, place)
        values, slopes = list[Tensor](), list[Tensor]()

        def one(part: Tensor, time: Tensor, **own: Any) -> Tensor:
            def rewarded(state: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
                output = self._output(network, state, time, own, place)
                value = self.reward.differentiable(place.to_data(state, output), place.level)
                return (output.detach(), value.detach()), value

            (output, value), slope = gradient(rewarded, part) if self.shift else _plain(rewarded, part)
            values.append(value)
            slopes.append(self.reward.sound_slope(slope, value))
            return output

        if self.chunk_size is None:
            output = one(x, t, **kwargs)
        else:
            before = place.forwards
            output = Chunked(one, self.chunk_size)(x, t, **kwargs)
            place.forwards = before + 1  # all parts are one pass of the batch
        if self.shift:
            self.reward.backward_passes += len(x)
            self._run.extras[SLOPE] = torch.cat(slopes)
        self._twist = self.reward.sound(torch.cat(values)).double()
        return output

    def _output(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place) -> Tensor:
        if self.inner is None:
            return network(x, t, **kwargs)
        return guided_output(self.inner, network, x, t, kwargs, place)

    def after_model(self, run: RunState, query: Tensor, output: Tensor) -> Tensor | None:
        """Weigh the state by its twist, and resample before it moves."""
        if self._twist is None:
            return None
        kept = run.table.rows[run.row].output
        assert kept is not None
        run.values[kept] = output
        factor = self._factors[run.row]
        run.extras[VALUE] = self._twist
        self.weigh(run, self._gain(run, factor * self._twist if factor else torch.zeros_like(self._twist)))
        value = run.extras.pop(VALUE)
        if self.adaptive and run.row + 2 < len(self._factors):
            self._factors[run.row + 1] = self.scale * self._next(run, value, factor / self.scale)
        return run.values[kept]

    def _next(self, run: RunState, value: Tensor, temperature: float) -> float:
        """The temperature after this one; the same where no reward is finite."""
        assert run.log_weights is not None
        both = (self.scale * value, run.log_weights)
        rewards, weights = both if self.ranks is None else [self.ranks.collect(part) for part in both]
        if temperature >= 1.0 or not bool(torch.isfinite(rewards + weights).any()):
            return temperature
        return next_temperature(rewards, temperature, weights, ess=self.policy.ess)

    def after_row(self, run: RunState) -> None:
        """Pull the state just made; at the end weigh the result."""
        self.check_guides(run)
        k = run.row
        move = self._moves[k]
        if self._twist is not None and self.shift and move is not None:
            spread = _signed(run, move)
            moved = run.values[move.target]
            push = (spread**2 * self._factors[k + 1]) * run.extras[SLOPE].to(moved.dtype)
            run.values[move.target] = moved + push
            assert move.noise_value is not None
            z = run.values[move.noise_value]
            ratio = -(push * (z / spread + push / (2 * spread**2))).double().flatten(1).sum(1)
            run.extras[TWIST] = run.extras[TWIST] - ratio
        run.extras.pop(SLOPE, None)
        if k == len(run.table.rows) - 1:
            run.extras[FINAL] = final = self.reward.at(run.values[run.table.result], run.table.end)
            self.weigh(run, self._gain(run, self.scale * final if self.scale else torch.zeros_like(final)), last=True)

    def _gain(self, run: RunState, twist: Tensor) -> Tensor:
        """New twist less the last one, which the moves since have been charged to already."""
        before = run.extras.get(TWIST, torch.zeros_like(twist))
        before = torch.where(before == -torch.inf, 0.0, before)  # weight 0 already; counted afresh where all were
        run.extras[TWIST] = twist
        return twist - before


def das_temperatures(steps: int, gamma: float = 0.008) -> list[float]:
    """λ_k = min((1 + γ)^k − 1, 1) for k < steps, and 1 at the end: the tempering of DAS.

    With γ = 0.008 the reward counts in full from step 87 on; for fewer steps take a larger γ, say 0.008·100/steps.

    Raises
    ------
    ValueError
        No steps, or γ not above 0.
    """
    if steps < 1 or not gamma > 0.0:
        raise ValueError(f"steps={steps!r} and gamma={gamma!r} are not possible; at least 1 step and gamma above 0")
    return [*(min((1.0 + gamma) ** k - 1.0, 1.0) for k in range(steps)), 1.0]


def _signed(run: RunState, move: RowStep) -> float:
    """Factor of the draw in a move; minus its spread where the table subtracts it."""
    terms = dict(run.table.rows[run.row].updates[0].terms)
    assert move.noise_value is not None
    return float(terms[move.noise_value])


def _plain(function: Callable[[Tensor], tuple[Any, Tensor]], x: Tensor) -> tuple[Any, Tensor]:
    """What a function returns besides its value, and no gradient."""
    with torch.no_grad():
        other, _ = function(x)
    return other, torch.zeros_like(x)
