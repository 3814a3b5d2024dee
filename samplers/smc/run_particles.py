"""`smc_sample`: weighted particles of a composition in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath

from ..grids import make_nodes
from ..keyed_noise import seed_of
from ..loop import run
from ..nodes import Nodes
from ..numerics import Array
from ..registry import build_table
from ..run_state import Result
from ..table import Table
from .chunks import Chunked
from .composition import Composition
from .corrector import FeynmanKac
from .discrete import DiscreteFeynmanKac
from .genealogy import Genealogy
from .particles import Ranks, own_slots
from .population import Checkpoint, Policy
from .proposals import score_steps, with_noise_factor
from .start_law import start_log_constant, start_states
from .weights import WeightedSamples, effective_size, log_mean_exp

WEIGHTS = ("continuous", "exact", "none")
DEFAULT_STEPS = 100


@dataclass(frozen=True)
class ParticleResult(WeightedSamples):
    """Weighted particles.

    Attributes
    ----------
    sample : Tensor (n, ...)
        This process's particles.
    log_weights : Tensor (n,) float64
        Averages are Σ weights·f(sample); equal after a last resampling.
    log_z, log_z_error : float
        Logarithm of the estimate of ∫ Π q_i^w_i·exp(scale·reward) at the end of the grid, and its standard error from
        this run alone. With continuous weights exact only as steps shrink and the start is pure noise.
    trace : list of Checkpoint
        ESS, resamplings, log Ẑ and ancestors left along the run.
    genealogy : Genealogy
    evaluations, branch_calls, reward_calls, reward_gradients : int
        Rows that called the network; calls of branches; samples rewarded and differentiated.
    table : Table
    """

    sample: Tensor
    log_weights: Tensor
    log_z: float
    log_z_error: float
    trace: list[Checkpoint]
    genealogy: Genealogy
    evaluations: int
    branch_calls: int
    reward_calls: int
    reward_gradients: int
    table: Table

    @property
    def ess(self) -> float:
        """Effective size of the final weights of this process."""
        return float(effective_size(self.log_weights))


class Pooled(NamedTuple):
    """Particles of several independent populations as one: states, log-weights over all, log Ẑ and its error."""

    sample: Tensor
    log_weights: Tensor
    log_z: float
    log_z_error: float


def pooled(islands: Sequence[ParticleResult]) -> Pooled:
    """Join populations that never met (islands, or runs of several seeds), each counted by its own estimate Ẑ.

    Their mean Ẑ is as unbiased as each of them. The error bar is that of a mean of independent estimates.

    Raises
    ------
    ValueError
        No population, or none whose weights were kept.
    """
    if not islands or any(math.isnan(island.log_z) for island in islands):
        raise ValueError("give at least one population, each run with weights")
    values = torch.tensor([island.log_z for island in islands], dtype=torch.float64)
    parts = [island.log_weights.double().cpu() for island in islands]
    joined = torch.cat([lw - log_mean_exp(lw) + z for lw, z in zip(parts, values, strict=True)])
    log_z = float(log_mean_exp(values))
    relative = (values - log_z).exp()
    error = float(relative.std() / math.sqrt(len(islands))) if len(islands) > 1 else islands[0].log_z_error
    return Pooled(torch.cat([island.sample for island in islands]), joined, log_z, error)


def smc_sample(
    model: Callable[..., Tensor],
    target: Composition,
    shape: Sequence[int],
    particles: int,
    *,
    path: GaussianPath | None = None,
    weights: str = "continuous",
    method: str | None = None,
    noise_scale: float = 1.0,
    steps: int | None = None,
    grid: str | Sequence[float] | Array | Nodes = "logsnr",
    grid_options: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
    window: tuple[float, float] = (0.0, 1.0),
    ranks: Ranks | None = None,
    prediction: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    seed: int | torch.Generator = 0,
    chunk_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    **options: Any,
) -> ParticleResult:
    """Draw weighted particles of a composition.

    Parameters
    ----------
    model : callable (x, t, **model_kwargs) -> output
    target : Composition
    shape : shape of one sample
    particles : int ≥ 1
        Over all processes.
    path : GaussianPath
        Required unless the model carries one or `grid` is Nodes.
    weights : {"continuous", "exact", "none"}
        `FeynmanKac`, `DiscreteFeynmanKac` (log densities needed; a last step to noise 0 is left out), or the composed
        score alone.
    method : str, optional
        A name of `list_methods()` with its `options`; by default `score_steps` with ζ = `noise_scale`, and "ddpm" for
        exact weights.
    noise_scale : float ≥ 0
        ζ of the default method.
    steps, grid, grid_options : as in `sample`; by default 100 steps
    policy, window, ranks : as in `Particles`
    prediction, model_kwargs, seed : as in `sample`
    chunk_size : int, optional
        Largest batch given to a network at once, those of branches included; weights always see all particles.
    dtype, device : of the particles

    Raises
    ------
    ValueError
        Before any call, when something asked for is unknown, impossible or inconsistent.
    """
    _check(weights, particles, window, ranks)
    nodes = _nodes(path if path is not None else getattr(model, "path", None), grid, steps, grid_options)
    if weights == "exact" and nodes.ends_clean:
        nodes = nodes.part(0, nodes.steps - 1)
    table = _table(nodes, weights, method, noise_scale, target, options)
    if chunk_size is not None:
        model, target = Chunked(model, chunk_size), _in_chunks(target, chunk_size)
    hook: FeynmanKac | DiscreteFeynmanKac
    if weights == "exact":
        hook = DiscreteFeynmanKac(target, policy, ranks=ranks)
    else:
        own = noise_scale if method is None else None
        hook = FeynmanKac(target, policy, window=window, ranks=ranks, noise_scale=own, weighted=weights != "none")
    key = seed_of(seed) if isinstance(seed, torch.Generator) else seed
    slots = own_slots(particles, ranks, device)
    before = _asked(target)
    result = run(
        table,
        model,
        start_states(target, table.start, shape, slots, key, dtype=dtype, device=device),
        prediction=prediction or getattr(model, "prediction", None) or "data",
        model_kwargs=model_kwargs,
        guidance=hook,
        seed=key,
        samples=slots,
        full=True,
    )
    assert isinstance(result, Result)
    return _reported(result, hook, weights, before)


def _in_chunks(target: Composition, size: int) -> Composition:
    """The same composition with networks of its own in chunks."""
    branches = (b if b.model is None else replace(b, model=Chunked(b.model, size)) for b in target.branches)
    return replace(target, branches=tuple(branches))


def _check(weights: str, particles: int, window: tuple[float, float], ranks: Ranks | None) -> None:
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is not possible; choose one of {', '.join(map(repr, WEIGHTS))}")
    count = 1 if ranks is None else ranks.count
    if particles < 1 or particles % count:
        raise ValueError(f"particles={particles!r} is not possible; it must be a multiple of {count} and at least 1")
    if weights != "continuous" and tuple(window) != (0.0, 1.0):
        raise ValueError(f"window={window!r} is possible for continuous weights only")


def _reported(
    result: Result, hook: FeynmanKac | DiscreteFeynmanKac, weights: str, before: tuple[int, int]
) -> ParticleResult:
    """What a run and its hook tell; `before` are the counts of the reward when it began."""
    assert result.log_weights is not None
    assert result.table is not None
    log_z, error = math.nan, math.nan
    if weights != "none":
        log_z, error = hook.log_z(), hook.log_z_error()
    if weights == "continuous":
        log_z += start_log_constant(hook.target, result.table.start, result.sample[0].numel())
    calls, gradients = (now - then for now, then in zip(_asked(hook.target), before, strict=True))
    return ParticleResult(
        sample=result.sample,
        log_weights=result.log_weights,
        log_z=log_z,
        log_z_error=error,
        trace=hook.population.trace,
        genealogy=hook.population.genealogy,
        evaluations=result.evaluations,
        branch_calls=hook.branch_calls,
        reward_calls=calls,
        reward_gradients=gradients,
        table=result.table,
    )


def _nodes(
    path: GaussianPath | None,
    grid: str | Sequence[float] | Array | Nodes,
    steps: int | None,
    grid_options: Mapping[str, Any] | None,
) -> Nodes:
    if isinstance(grid, Nodes):
        if steps is not None:
            raise ValueError(f"the nodes have their own steps; leave out steps={steps}")
        return grid
    if path is None:
        raise ValueError("path is missing: pass path=... or whatever the model was trained on, or grid=Nodes(...)")
    if isinstance(grid, str):
        return make_nodes(path, grid, DEFAULT_STEPS if steps is None else steps, **(grid_options or {}))
    if steps is not None:
        raise ValueError(f"an explicit grid has its own steps; leave out steps={steps}")
    return make_nodes(path, grid, **(grid_options or {}))


def _table(
    nodes: Nodes,
    weights: str,
    method: str | None,
    noise_scale: float,
    target: Composition,
    options: Mapping[str, Any],
) -> Table:
    if weights == "exact":
        table = build_table("ddpm" if method is None else method, nodes, **options)
        return with_noise_factor(table, 1.0 / math.sqrt(target.total))
    if method is not None:
        return build_table(method, nodes, **options)
    if options:
        raise ValueError(f"options {sorted(options)} belong to a method; name one, or leave them out")
    return score_steps(nodes, noise_scale, None if target.total == 1.0 else target.total)


def _asked(target: Composition) -> tuple[int, int]:
    return (0, 0) if target.reward is None else (target.reward.calls, target.reward.backward_passes)
