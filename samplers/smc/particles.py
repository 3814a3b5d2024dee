"""The hook that turns a batch into weighted particles; what the weights are is a sub-class's affair."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..guidance.protocol import Network, Place, known
from ..run_state import Hook, RunState
from .population import Policy, Population
from .resampling import Indices
from .rewards import CountedReward


class Ranks(Protocol):
    """The processes that share a population; rank r holds slots r·n..(r + 1)·n − 1."""

    rank: int
    count: int

    def collect(self, value: Tensor) -> Tensor:
        """Rows of all processes (count·n, ...), in order, from this one's (n, ...)."""
        ...


def own_slots(particles: int, ranks: Ranks | None, device: torch.device | str | None) -> Tensor:
    """Global numbers of this process's share of the particles, which the processes divide evenly."""
    count, rank = (1, 0) if ranks is None else (ranks.count, ranks.rank)
    part = particles // count
    return torch.arange(rank * part, (rank + 1) * part, device=device)


class Particles(Hook):
    """Weights a batch along a run and resamples it.

    A sub-class gives `log_increment`. Weights are kept in `RunState.log_weights` (float64) and end in
    `Result.log_weights`; noise keys stay with the slots, so copies part ways in the next stochastic row. One host read
    of N numbers at each checkpoint; sampling without particles has none.

    Parameters
    ----------
    policy : Policy, optional
    window : (low, high)
        Path times (0 = noise, 1 = data) between which rows are weighted. Outside it the law is the one asked for only
        where the proposal needs no correction.
    ranks : Ranks, optional
        Processes that share the population, each with an equal part; by default this one has it all. With
        `sample_offset` at the first slot of the part, N particles on several processes are those of one.

    Attributes
    ----------
    population : Population
        Of the last run: trace, ancestors, log Ẑ.
    """

    whole_batch = True

    def __init__(
        self, policy: Policy | None = None, *, window: tuple[float, float] = (0.0, 1.0), ranks: Ranks | None = None
    ) -> None:
        if not (len(window) == 2 and window[0] < window[1]):
            raise ValueError(f"window={window!r} is not possible; give two path times, the earlier first")
        self.policy = policy or Policy()
        self.window = (float(window[0]), float(window[1]))
        self.ranks = ranks
        self.population: Population
        self._run: RunState | None = None
        self._weighted, self._done = 0, -1

    def begin(self, run: RunState) -> None:
        """A run starts; override (and call this) to prepare what depends on its table."""

    def counted(self) -> CountedReward | None:
        """The reward asked, if any: what it met is reported where the host is read."""
        return None

    def log_increment(self, run: RunState) -> Tensor | None:
        """What this row adds to the log-weights (B,), or None if it is not one to weigh at."""
        raise NotImplementedError

    def initial_log_weights(self, run: RunState) -> Tensor | None:
        """Log-weights (B,) before the first row, or None for equal ones."""
        return None

    def in_window(self, run: RunState) -> bool:
        """Whether the current row is to be weighted."""
        return self.window[0] <= run.table.rows[run.row].level.clock <= self.window[1]

    def started(self, run: RunState) -> None:
        """Prepare for `run` if this is its first moment; called by every method of a hook.

        Raises
        ------
        ValueError
            The run has weights of another particle hook already.
        """
        if run is self._run:
            return
        if run.log_weights is not None:
            raise ValueError(
                f"{type(self).__name__} is the second particle hook of one run, whose weights would mix; give one, and "
                "add up the rewards"
            )
        self._run, self._weighted, self._done = run, 0, -1
        ranks = 1 if self.ranks is None else self.ranks.count
        self.population = Population(len(run.samples) * ranks, self.policy, run.seed)
        first = torch.zeros(len(run.samples), dtype=_wide(run.samples), device=run.samples.device)
        run.log_weights = first
        self.begin(run)
        initial = self.initial_log_weights(run)
        if initial is not None:
            run.log_weights = first + initial

    def before_model(self, run: RunState, query: Tensor) -> None:
        """Prepare at the first row."""
        self.started(run)

    def after_row(self, run: RunState) -> None:
        """Add the row's increment; at a checkpoint look at the weights, and resample if the policy says so."""
        self.started(run)
        if self._done == run.row:
            return  # given as guidance and as a hook
        self._done = run.row
        self.weigh(run, self.log_increment(run), last=run.row == len(run.table.rows) - 1)

    def weigh(self, run: RunState, increment: Tensor | None, *, last: bool = False) -> None:
        """Add (B,) to the log-weights; at a checkpoint look at them, and resample if the policy says so."""
        assert run.log_weights is not None
        if increment is not None:
            run.log_weights = run.log_weights + increment.to(run.log_weights)
            self._weighted += 1
        if last or (increment is not None and self._weighted % self.policy.every == 0):
            self._checkpoint(run, last)

    def _checkpoint(self, run: RunState, last: bool) -> None:
        assert run.log_weights is not None
        if (reward := self.counted()) is not None:
            reward.report()
        everyone = run.log_weights if self.ranks is None else self.ranks.collect(run.log_weights)
        settled, parents = self.population.checkpoint(everyone, run.row, last=last)
        part = len(run.samples)
        start = 0 if self.ranks is None else self.ranks.rank * part
        run.log_weights = settled[start : start + part].to(run.log_weights)
        if parents is None or (parents == np.arange(len(parents))).all():
            return
        if self.ranks is None or _all_at_home(parents, part):
            run.gather(_index(parents[start : start + part] - start, run))
        else:
            run.gather(_index(parents[start : start + part], run), self.ranks.collect)

    def log_z(self) -> float:
        """Log Ẑ of the last run: the mean weight, over all resamplings."""
        return self.population.log_z(self._everyone())

    def log_z_error(self) -> float:
        """Standard error of log Ẑ, estimated from this one run (nan where it cannot be told)."""
        return self.population.log_z_error(self._everyone())

    def _everyone(self) -> Tensor:
        if self._run is None or self._run.log_weights is None:
            raise ValueError("no run yet: pass the hook to sample(..., hooks=[hook]) first")
        weights = self._run.log_weights
        return weights if self.ranks is None else self.ranks.collect(weights)


class GuidedParticles(Particles):
    """Particles that make the network's output too, so that they must be the run's guidance."""

    _entered = False

    def at(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place) -> Tensor:
        """The output at a place."""
        raise NotImplementedError

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Refused: the row must be known."""
        return self.at(network, x, t, kwargs, known(None, type(self).__name__))

    def started(self, run: RunState) -> None:
        """Prepare for `run` if this is its first moment."""
        if run is not self._run:
            self._entered = False
        super().started(run)

    def after_row(self, run: RunState) -> None:
        """As `Particles`, for a run that they guide."""
        self.check_guides(run)
        super().after_row(run)

    def check_guides(self, run: RunState) -> None:
        """Raise ValueError where the network was called without asking this guidance."""
        self.started(run)
        if run.table.rows[run.row].calls_network and not self._entered:
            name = type(self).__name__
            raise ValueError(f"{name} was given as a hook only, and guides nothing; pass it as guidance={name}(...)")


def newest(run: RunState) -> int:
    """Number of the value that the current row computed last, which is the state after it."""
    row = run.table.rows[run.row]
    if not row.updates:
        raise ValueError(f"row {run.row} of method {run.table.method!r} computes no state")
    return row.updates[-1].target


def _index(parents: Indices, run: RunState) -> Tensor:
    return torch.from_numpy(parents).to(run.samples.device)


def _all_at_home(parents: Indices, part: int) -> bool:
    """Whether every ancestor lives on the process of its descendant; the same answer on every process."""
    return bool((parents // part == np.arange(len(parents)) // part).all())


def _wide(like: Tensor) -> torch.dtype:
    return torch.float32 if like.device.type == "mps" else torch.float64
