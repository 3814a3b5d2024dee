"""Log-densities of a model: of given data, of its own samples, and of the numerical map of a sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath

from ..adaptive.problem import level_at
from ..border import Border, Model
from ..grids import make_nodes
from ..guidance import Guidance
from ..loop import check_start, run
from ..nodes import Level, Nodes
from ..registry import build_table, list_methods
from ..reversed_nodes import ReversedNodes
from ..table import Table
from .augmented import Carried, carry_volume
from .divergence import Divergence, jacobian_rows
from .flow import SOLVERS, flow_ends, gives_velocity, integrate_volume

TABLE_STEPS = 50


@dataclass(frozen=True)
class LogDensity:
    """Log-densities of a batch.

    Attributes
    ----------
    log_density : Tensor (B,)
        In nats; the mean over the probes.
    data, latent : Tensor (B, ...)
        The states at the two ends of the flow: data (or samples) and the noise they belong to.
    standard_error : Tensor (B,) or None
        Of the average over random probes; None for an exact trace or a single probe.
    evaluations : int
        Network calls of one batch, without the backward passes.
    """

    log_density: Tensor
    data: Tensor
    latent: Tensor
    standard_error: Tensor | None
    evaluations: int


def log_density(
    model: Model,
    x: Tensor,
    *,
    path: GaussianPath | None = None,
    prediction: str | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    grid: str | Sequence[float] = "logsnr",
    divergence: str = "exact",
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    clean_time: float | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    **options: Any,
) -> LogDensity:
    """Log-density of data under a model by its probability flow (Song et al. 2021, section 4.3).

    log p(x) = log N(x_T; 0, noise_T²) + log |det d x_T/d x|, with the volume integrated along the flow.

    Parameters
    ----------
    model : callable (x, t, **model_kwargs) -> output
        Differentiable in x.
    x : Tensor (B, ...)
        Taken as states at the clean end: data themselves where the flow reaches them (velocity networks on linear
        paths), else data with the little noise of the path's lambda_max, to which dequantisation belongs anyway.
    path, prediction : default the model's own
    method : str
        A solver of torchdiffeq ("dopri5", "bosh3", "dopri8" …, with rtol and atol), or a deterministic method of
        `list_methods()` with one kind of row, on `steps` steps of `grid` and with its own `options`.
    divergence : {"exact", "rademacher", "gaussian"}
    probes : int
        Number of random probes, all along one trajectory; see `Divergence`.
    clean_time : float, optional
        Path time of x, such as 0.999 or that of EDM's σ 0.002.
    model_kwargs, guidance : as in `run`; a guided density is that of the guided flow
    seed, samples : key of the probes

    Notes
    -----
    The prior is the path's: that the data have not quite vanished at its noisy end, biases the result by about
    d·(signal_T/noise_T)²·variance/2.

    Raises
    ------
    ValueError
        Unknown method, options of the other kind of method, a stochastic table, no path.
    """
    path, border = _opened(model, x, path, prediction, guidance)
    kwargs = dict(model_kwargs or {})
    estimate = Divergence(divergence, x, probes=probes, seed=seed, samples=samples)
    ends = flow_ends(path, border, clean_time)
    table = _table(path, border, method, steps, grid, clean_time, options)
    with torch.no_grad():
        if table is None:
            span = (ends.clean, ends.noisy)
            found = integrate_volume(path, border, x, estimate, kwargs, span, method=method, rtol=rtol, atol=atol)
            level = ends.noisy
        else:
            found, level = carry_volume(table, border, x, estimate, kwargs), table.end
    return _result(log_prior(found.state, level), found, 1.0, x, found.state, border)


def sample_with_density(
    table: Table,
    model: Model,
    x_init: Tensor,
    *,
    prediction: str = "data",
    divergence: str = "exact",
    probes: int = 1,
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    samples: Sequence[int] | None = None,
) -> LogDensity:
    """Samples of a deterministic table and their log-density, carried along while sampling.

    Parameters
    ----------
    table : Table
        Of one kind of row; between levels where its variable is finite (velocity rows may end clean).
    x_init : Tensor (B, ...)
        Drawn from the prior, noise·N(0, 1).
    Other parameters are those of `log_density`.
    """
    check_start(x_init, guidance)
    border = Border(model, x_init, prediction, guidance)
    estimate = Divergence(divergence, x_init, probes=probes, seed=seed, samples=samples)
    with torch.no_grad():
        found = carry_volume(table, border, x_init, estimate, dict(model_kwargs or {}))
    return _result(log_prior(x_init, table.start), found, -1.0, found.state, x_init, border)


def map_density(
    table: Table,
    model: Model,
    x_init: Tensor,
    *,
    prediction: str = "data",
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
) -> LogDensity:
    """Samples of any deterministic table and the exact density of the numerical map, for importance weights.

    The Jacobian of the whole run is built row by row, with as many backward passes as a sample has elements: for few
    dimensions. Parameters as `sample_with_density`.

    Raises
    ------
    ValueError
        A stochastic table.
    """
    if table.stochastic:
        raise ValueError(f"table {table.method!r} draws noise; only a deterministic one maps noise to samples")
    given: dict[str, Any] = {"prediction": prediction, "model_kwargs": model_kwargs, "guidance": guidance}
    with torch.enable_grad():
        start = x_init.detach().requires_grad_()
        result = run(table, model, start, differentiable=True, full=True, **given)
        assert not isinstance(result, Tensor)
        rows = jacobian_rows(result.sample, start)
    volume = torch.linalg.slogdet(torch.stack(rows, dim=1)).logabsdet
    density = log_prior(x_init, table.start) - volume
    return LogDensity(density, result.sample.detach(), x_init, None, result.evaluations)


def log_prior(x: Tensor, level: Level) -> Tensor:
    """Log N(x; 0, noise²) of states (B, ...) at a level, shape (B,)."""
    size = x[0].numel()
    return -0.5 * x.flatten(1).square().sum(1) / level.noise**2 - size * math.log(level.noise * math.sqrt(2 * math.pi))


def _opened(
    model: Model, x: Tensor, path: GaussianPath | None, prediction: str | None, guidance: Guidance | None
) -> tuple[GaussianPath, Border]:
    check_start(x, guidance)
    path = path if path is not None else getattr(model, "path", None)
    if not isinstance(path, GaussianPath):
        raise ValueError("path is missing, or none that runs from noise: pass path=LinearPath() or the model's own")
    kind = prediction or getattr(model, "prediction", None) or "data"
    return path, Border(model, x, kind, guidance)


def _table(
    path: GaussianPath,
    border: Border,
    method: str,
    steps: int | None,
    grid: str | Sequence[float],
    clean_time: float | None,
    options: Mapping[str, Any],
) -> Table | None:
    """The table from data to noise, or None for a solver of torchdiffeq."""
    if method in SOLVERS:
        if steps is not None or options:
            given = [*(["steps"] if steps is not None else []), *options]
            raise ValueError(f"{', '.join(given)} belong to tables; {method!r} takes rtol and atol")
        return None
    if method not in list_methods():
        raise ValueError(f"method={method!r} is not known; use one of {', '.join(SOLVERS)}, or a table's method")
    if isinstance(grid, str) and clean_time is not None:
        raise ValueError("clean_time goes with the solvers of torchdiffeq; for a table give the times as grid=[...]")
    if not isinstance(grid, str):
        return _reversed_table(make_nodes(path, grid), method, options)
    count = steps or TABLE_STEPS
    table = _reversed_table(make_nodes(path, grid, count + 1, final="path").part(1), method, options)
    if {row.form for row in table.rows} != {"velocity"}:
        return table  # its variable is infinite at both ends of a path from pure noise to data
    ends_clean = gives_velocity(border, level_at(path, 1.0))
    return _reversed_table(make_nodes(path, grid, count, final="zero" if ends_clean else "path"), method, options)


def _reversed_table(nodes: Nodes, method: str, options: Mapping[str, Any]) -> Table:
    if build_table(method, nodes, **options).stochastic:
        raise ValueError(f"method {method!r} draws noise; densities follow a deterministic one")
    table = build_table(method, ReversedNodes(nodes), **options)
    if not nodes.ends_clean:
        return table
    if {row.form for row in table.rows} != {"velocity"}:
        raise ValueError(f"the variable that {method!r} steps is infinite at noise 0; let the grid end before it")
    return build_table(method, ReversedNodes(nodes, keep_clean=True), **options)


def _result(prior: Tensor, found: Carried, sign: float, data: Tensor, latent: Tensor, border: Border) -> LogDensity:
    each = prior[:, None].to(found.log_volume.dtype) + sign * found.log_volume
    count = each.shape[1]
    error = each.std(1) / math.sqrt(count) if count > 1 else None
    return LogDensity(each.mean(1), data, latent, error, border.evaluations)
