"""Feynman–Kac correctors: any stochastic or deterministic table samples a composition, and weights make it exact.

Skreta et al. 2025, "Feynman-Kac correctors in diffusion", arXiv:2503.02819. With s_i the score of branch i, w_i its
weight, W = Σ w_i, S = Σ w_i·s_i, r the reward and c(t) its scale, the network of the run is replaced by one of score
S + ζ²/(1 + ζ²)·c·∇r. A method of noise scale ζ then follows

    dx = (−f·x + ½(1 + ζ²)·g²·S + ½ζ²·g²·c·∇r) dτ + ζ·g dW,

and log-weights grow by

    (W − 1)·d·f + ½g²·(|S|² − Σ w_i·|s_i|²) + c'·r + c·⟨−f·x + ½g²·S, ∇r⟩     per unit of sampling time τ,

whatever ζ is. Nothing but the outputs of the branches enters: no divergence, no further call.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import coefficients

from ..guidance import Place
from ..guidance.protocol import Network
from ..nodes import Level
from ..run_state import RunState
from ..table import Table
from .composition import Composition
from .increments import half_diffusion, noise_scales, spans
from .particles import GuidedParticles, Ranks
from .population import Policy
from .rewards import CountedReward

_TAIL = 3.0 + 2.0 * math.sqrt(2.0)


class HeavyTailWarning(UserWarning):
    """Weights have no second moment over a long stretch of pure noise."""


@dataclass(frozen=True)
class _Step:
    """Host numbers of one row.

    `to_noise` makes a branch's output its noise prediction, `from_noise` goes back; `pull` is ½∫g²/noise² over the row,
    `growth` log(signal'/signal), `scale` and `change` the reward's factor and its change, `share` ζ²/(1 + ζ²).
    """

    level: Level
    to_noise: tuple[float, float]
    from_noise: tuple[float, float] | None
    pull: float
    first: float | None
    growth: float
    scale: float
    change: float
    share: float


class FeynmanKac(GuidedParticles):
    """Samples a `Composition`: pass it as `guidance` of `sample` or `run`.

    The weights are right in the limit of small steps, to first order, whatever the method; `DiscreteFeynmanKac` is
    right at any step where log densities are known. Resampling is described by `Policy`.

    Parameters
    ----------
    target : Composition
    policy, window, ranks : as in `Particles`
        A window is not possible with a reward, whose tilt at its ends would have to be weighed too.
    noise_scale : float ≥ 0, optional
        ζ, the noise of the method over that of the noising process. By default read from the table row by row; needed
        only with a reward and a method whose rows are not one Gaussian move each.
    weighted : bool
        False samples with the composed score alone, as plain guidance does.

    Attributes
    ----------
    branch_calls : int
        Calls of branches in the last run (a run's `evaluations` counts all branches of a row as one).
    population, trace : of the last run
    """

    def __init__(
        self,
        target: Composition,
        policy: Policy | None = None,
        *,
        window: tuple[float, float] = (0.0, 1.0),
        ranks: Ranks | None = None,
        noise_scale: float | None = None,
        weighted: bool = True,
    ) -> None:
        super().__init__(policy, window=window, ranks=ranks)
        if noise_scale is not None and not 0.0 <= noise_scale < math.inf:
            raise ValueError(f"noise_scale={noise_scale!r} is not possible; it must be finite and not negative")
        if target.reward is not None and self.window != (0.0, 1.0):
            raise ValueError(
                f"window={window!r} is not possible with a reward, whose tilt at its ends would go unweighed; let the "
                "scale of the reward be 0 before the window instead"
            )
        self.target = target
        self.noise_scale = noise_scale
        self.weighted = weighted
        self.branch_calls = 0
        self._steps: list[_Step | None] = []
        self._gain: Tensor | None = None

    def begin(self, run: RunState) -> None:
        """Compile the numbers of every row, before the first call."""
        self.branch_calls = 0
        self._steps = _compile(run.table, run.prediction, self.target, self.noise_scale)
        if self.weighted:
            self._check_tail(run.table)

    def counted(self) -> CountedReward | None:
        """The reward of the tilt."""
        return self.target.reward

    def initial_log_weights(self, run: RunState) -> Tensor | None:
        """The tilt at the start, where its scale is not 0."""
        scale = self.target.scale(run.table.start.clock)
        if not self.weighted or self.target.reward is None or scale == 0.0:
            return None
        return scale * self.target.reward(run.values[0])

    def at(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place) -> Tensor:
        """The composed output, in the network's own prediction; keeps what the row adds to the log-weights."""
        self._entered = True
        run = self._run
        step = None if run is None or place.row is None else self._steps[place.row]
        if run is None or step is None:
            raise ValueError("particles need a table of fixed rows; adaptive methods have none")
        outputs = [branch(network, x, t, kwargs) for branch in self.target.branches]
        self.branch_calls += len(outputs)
        composed = _weighted_sum(self.target.weights, outputs)
        if self.target.total != 1.0:
            composed = composed + ((1.0 - self.target.total) * _onto(step, 0, run)) * x
        rewarded = slope = None
        if self.target.reward is not None and (step.scale != 0.0 or step.change != 0.0):
            rewarded, slope = self.target.reward.with_gradient(x)
            if step.share and step.scale:
                pull = -step.level.noise * step.share * step.scale * _onto(step, 1, run)
                composed = composed + pull * slope
        weigh = self.weighted and self.in_window(run)
        self._gain = self._increment(step, x, outputs, rewarded, slope) if weigh else None
        return composed

    def log_increment(self, run: RunState) -> Tensor | None:
        """What the row's outputs add, found when the network was called."""
        gain, self._gain = self._gain, None
        return gain

    def _increment(
        self, step: _Step, x: Tensor, outputs: list[Tensor], rewarded: Tensor | None, slope: Tensor | None
    ) -> Tensor:
        """∫G over the row, with all that depends on the state taken at its start; (B,) in float64."""
        on_x, on_output = step.to_noise
        weights, total = self.target.weights, self.target.total
        mean = _weighted_sum([w / total for w in weights], outputs)
        spread = sum((w * _squares(output - mean) for w, output in zip(weights, outputs, strict=True)), start=0.0)
        gain = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if len(outputs) > 1:
            # Differences of outputs are those of noise predictions up to a factor; at signal 0 of data predictions.
            gain = gain - (step.first if step.first is not None else step.pull * on_output**2) * spread
        if total != 1.0 or slope is not None:
            noise = on_x * x + on_output * mean if on_x else on_output * mean
            if total != 1.0:
                gain = gain + total * (total - 1.0) * step.pull * _squares(noise)
                gain = gain - (total - 1.0) * step.growth * x[0].numel()
        if rewarded is not None and slope is not None:
            gain = gain + step.change * rewarded if step.change else gain
            if step.scale:
                gain = gain + step.scale * step.growth * _inner(x, slope)
                gain = gain - step.scale * step.pull * step.level.noise * total * _inner(noise, slope)
        return gain

    def _check_tail(self, table: Table) -> None:
        """Warn where a composition of W > 1 starts in pure noise with a ζ at which the second moment grows for ever."""
        total = self.target.total
        if total <= 1.0:
            return
        try:
            squares = noise_scales(table, spans(table)) if self.noise_scale is None else [self.noise_scale**2]
        except ValueError:
            return
        square, critical = sorted(squares)[len(squares) // 2], (total - 1.0) / total
        if critical / _TAIL <= square <= critical * _TAIL:
            warnings.warn(
                f"weights of W = {total:g} at noise scale ζ² = {square:.3g} have no second moment over a long stretch "
                f"of pure noise (safe: ζ² > {critical * _TAIL:.3g} or < {critical / _TAIL:.3g}), and the ESS does not "
                "show it: start at the smallest noise at which the law is still Gaussian, or take another noise scale",
                HeavyTailWarning,
                stacklevel=2,
            )


def _compile(table: Table, prediction: str, target: Composition, noise_scale: float | None) -> list[_Step | None]:
    if any(row.estimate is not None for row in table.rows):
        raise ValueError("an analytic first step calls no branch, so nothing is known to weigh it by; leave out afs")
    between = spans(table)
    squares = [0.0 if noise_scale is None else noise_scale**2] * len(between)
    if target.reward is not None and noise_scale is None:
        squares = noise_scales(table, between)
    steps: list[_Step | None] = []
    for row, (start, end), square in zip(table.rows, between, squares, strict=True):
        if not row.calls_network:
            steps.append(None)
            continue
        level = row.level
        point = level[1:5]
        moved = start.lam < end.lam
        pull = half_diffusion(start, end) if moved else 0.0
        growth = math.log(end.signal / start.signal) if moved and start.signal > 0.0 else 0.0
        pure = math.isinf(pull)
        if pure and target.total != 1.0:
            raise ValueError(
                f"weights that sum to {target.total:g} cannot start at signal 0, where the law is not defined by its "
                "score; begin at a later time"
            )
        scale = target.scale(start.clock) if target.reward is not None else 0.0
        if pure and scale != 0.0:
            raise ValueError(f"the reward's scale must be 0 at signal 0, got {scale:g}; begin later or let it grow")
        steps.append(
            _Step(
                level=level,
                to_noise=coefficients(*point, prediction, "noise"),
                from_noise=coefficients(*point, "noise", prediction) if level.signal > 0.0 else None,
                pull=0.0 if pure else pull / level.noise**2,
                first=_first_pull(level, end, prediction) if pure else None,
                growth=growth,
                scale=scale,
                change=(target.scale(end.clock) if target.reward is not None else 0.0) - scale if moved else 0.0,
                share=square / (1.0 + square),
            )
        )
    return steps


def _first_pull(start: Level, end: Level, prediction: str) -> float:
    """Factor of squared differences of outputs over a step from signal 0, data predictions held: ½Δ(signal/noise)²."""
    if end.noise == 0.0:
        raise ValueError("one step from signal 0 to noise 0 leaves nothing to weigh; take more steps")
    _, on_output = coefficients(*start[1:5], prediction, "data")
    return 0.5 * (end.signal / end.noise) ** 2 * on_output**2


def _onto(step: _Step, which: int, run: RunState) -> float:
    if step.from_noise is None:
        raise ValueError(f"row {run.row} starts at signal 0, where this composition has no {run.prediction} prediction")
    return step.from_noise[which]


def _weighted_sum(weights: tuple[float, ...] | list[float], outputs: list[Tensor]) -> Tensor:
    if len(outputs) == 1:
        return outputs[0] if weights[0] == 1.0 else weights[0] * outputs[0]
    total = weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        total = total.add(output, alpha=weight)
    return total


def _squares(x: Tensor) -> Tensor:
    return _inner(x, x)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products (B,) in at least single precision, as float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vecdot(x.reshape(len(x), -1).to(wide), y.reshape(len(y), -1).to(wide)).double()
