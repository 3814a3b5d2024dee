"""`steered_sample`: particles or candidates steered by a reward in one call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..border import Model
from ..guidance import Guidance
from ..keyed_noise import START_NOISE, keyed_normal, seed_of
from ..loop import run
from ..run_state import Hook, Result, RunState
from ..sampling import GridLike, Process, plan
from ..smc import Chunked
from ..smc.particles import own_slots
from ..smc.population import Checkpoint
from ..smc.weights import WeightedSamples
from ..table import Table
from .selection import Selection
from .steered_particles import FINAL, Steering
from .twisted_particles import Twisted

DEFAULT_STEPS = 100


@dataclass(frozen=True)
class SteeredResult(WeightedSamples):
    """What steering found, and what it cost.

    Attributes
    ----------
    sample : Tensor (n, ...)
        All particles of this process, or what each group of candidates has kept.
    rewards : Tensor (n,) float64
        Of `sample`.
    log_weights : Tensor (n,) float64
        0 for candidates.
    log_z, log_z_error : float
        Of E[exp(scale·reward)] under the model, and its standard error from this run; nan for candidates.
    trace : list of Checkpoint
        ESS, resamplings and ancestors along the run of particles.
    evaluations : int
        Network calls of one particle (or candidate); with `forwards` those of all branches of a guidance.
    forwards : int
    network_samples : int
        Forward passes of single samples: `forwards` times the batch.
    reward_calls, backward_passes : int
        Samples rewarded, and samples differentiated.
    table : Table
    """

    sample: Tensor
    rewards: Tensor
    log_weights: Tensor
    log_z: float
    log_z_error: float
    evaluations: int
    forwards: int
    network_samples: int
    reward_calls: int
    backward_passes: int
    table: Table
    trace: list[Checkpoint] = field(default_factory=list)

    @property
    def ancestors(self) -> int:
        """Particles of the first generation that have descendants; all samples where none were resampled."""
        return self.trace[-1].ancestors if self.trace else len(self.sample)


def steered_sample(
    model: Model,
    steering: Steering | Twisted | Selection,
    shape: Sequence[int],
    count: int,
    *,
    path: Process | None = None,
    method: str | Table = "ddim",
    steps: int | None = None,
    grid: GridLike | None = None,
    grid_options: Mapping[str, Any] | None = None,
    prediction: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    hooks: Sequence[Hook] = (),
    shared_start: bool = False,
    seed: int | torch.Generator = 0,
    chunk_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    progress: bool = False,
    **options: Any,
) -> SteeredResult:
    """Draw samples that a reward steers.

    Parameters
    ----------
    model : callable (x, t, **model_kwargs) -> output
    steering : Steering, Twisted or Selection
    shape : shape of one sample
    count : int ≥ 1
        Particles, over all processes; for a `Selection` samples, each from its own group of candidates.
    path, grid, grid_options, prediction, guidance, hooks : as in `sample`
        A guidance beside `Twisted` belongs inside it (`inner`).
    method, options, steps
        By default 100 steps of ddim with eta=1. A `Table` has its own levels.
    model_kwargs : mapping
        Tensors are of the length of the batch: `count`, or `count` times the candidates.
    shared_start : bool
        Candidates of a group begin at the same noise.
    seed : int or torch.Generator
    chunk_size : int, optional
        Largest batch given to the network at once.
    dtype, device : of the particles
    progress : bool

    Raises
    ------
    ValueError
        Before any call, when something asked for is unknown, impossible or inconsistent.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count={count!r} is not possible; it must be a whole number, at least 1")
    if isinstance(steering, Twisted) and guidance is not None:
        raise ValueError("Twisted is a guidance itself; give the other one as Twisted(..., inner=...)")
    table = _table(model, path, method, steps, grid, grid_options, options)
    key = seed_of(seed) if isinstance(seed, torch.Generator) else seed
    slots, group = _slots(steering, count, device)
    from_slot = slots - slots % group if shared_start else slots
    before, last = (steering.reward.calls, steering.reward.backward_passes), _Last()
    result = run(
        table,
        model if chunk_size is None else Chunked(model, chunk_size),
        keyed_normal(shape, key, from_slot, START_NOISE, dtype=dtype, device=device) * table.start.noise,
        prediction=prediction or getattr(model, "prediction", None) or "data",
        model_kwargs=model_kwargs,
        guidance=steering if isinstance(steering, Twisted) else guidance,
        seed=key,
        samples=slots,
        hooks=[*hooks, *([] if isinstance(steering, Twisted) else [steering]), last],
        progress=progress,
        full=True,
    )
    assert isinstance(result, Result)
    return _outcome(steering, result, last.rewards, before)


def _slots(
    steering: Steering | Twisted | Selection, count: int, device: torch.device | str | None
) -> tuple[Tensor, int]:
    """Noise keys of this process's batch, and the number of candidates of one sample."""
    if isinstance(steering, Selection):
        return torch.arange(count * steering.candidates, device=device), steering.candidates
    ranks = steering.ranks
    if ranks is not None and count % ranks.count:
        raise ValueError(f"count={count!r} is not possible; it must be a multiple of the {ranks.count} processes")
    return own_slots(count, ranks, device), 1


def _outcome(
    steering: Steering | Twisted | Selection, result: Result, rewards: Tensor, before: tuple[int, int]
) -> SteeredResult:
    """What a run found, and what it cost since the counts `before`."""
    forwards, reward = int(result.options["forwards"]), steering.reward
    assert result.table is not None
    cost: dict[str, Any] = {
        "evaluations": result.evaluations,
        "forwards": forwards,
        "network_samples": forwards * len(result.sample),
        "reward_calls": reward.calls - before[0],
        "backward_passes": reward.backward_passes - before[1],
        "table": result.table,
    }
    if isinstance(steering, Selection):
        kept = steering.survivors(rewards)
        even = torch.zeros(len(kept), dtype=torch.float64, device=kept.device)
        return SteeredResult(steering.survivors(result.sample), kept, even, math.nan, math.nan, **cost)
    assert result.log_weights is not None
    found = (steering.log_z(), steering.log_z_error())
    return SteeredResult(result.sample, rewards, result.log_weights, *found, **cost, trace=steering.population.trace)


class _Last(Hook):
    """Keeps the rewards of the results, after all that steering did to them."""

    rewards: Tensor

    def after_row(self, run: RunState) -> None:
        """At the end."""
        if run.row == len(run.table.rows) - 1:
            self.rewards = run.extras[FINAL]


def _table(
    model: Model,
    path: Process | None,
    method: str | Table,
    steps: int | None,
    grid: GridLike | None,
    grid_options: Mapping[str, Any] | None,
    options: dict[str, Any],
) -> Table:
    if method == "ddim":
        options = {"eta": 1.0, **options}
    if isinstance(method, str) and steps is None and (grid is None or isinstance(grid, str)):
        steps = DEFAULT_STEPS
    path = path if path is not None else getattr(model, "path", None)
    return plan(path, method, steps=steps, grid=grid, grid_options=grid_options, **options)
