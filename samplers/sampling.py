"""`sample`: from a model, a path and a budget to samples in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath, StochasticInterpolant, unknown_name

from .adaptive import list_adaptive, prepare
from .border import Model
from .defaults import default_settings, is_guided
from .fitted import check_fit, is_table, open_table
from .grids import grid_info, make_nodes
from .guidance import Guidance, guidance_hooks
from .keyed_noise import seed_of
from .loop import check_start, run
from .nodes import Nodes
from .numerics import Array
from .registry import build_table, list_methods
from .run_state import Callback, Hook, NoiseSource, Result
from .table import Table
from .thresholding import Thresholding

Process = GaussianPath | StochasticInterpolant
GridLike = str | Sequence[float] | Array | Nodes
DEFAULT_GRID = "logsnr"
DEFAULT_NFE = 10


def sample(
    model: Model,
    x_init: Tensor,
    *,
    path: Process | None = None,
    method: str | Table | os.PathLike[str] | None = None,
    nfe: int | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    grid_options: Mapping[str, Any] | None = None,
    prediction: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    thresholding: Thresholding | None = None,
    seed: int | torch.Generator = 0,
    sample_offset: int = 0,
    chunk_size: int | None = None,
    noise: NoiseSource | None = None,
    anchors: Mapping[str, Tensor] | None = None,
    hooks: Sequence[Hook] = (),
    callback: Callback | None = None,
    progress: bool = False,
    differentiable: bool = False,
    full: bool = False,
    **options: Any,
) -> Tensor | Result:
    """Draw samples.

    Parameters
    ----------
    model : callable (x, t, **model_kwargs) -> output
        t (B,) is path time, 0 = noise and 1 = data. A wrapped model (`from_diffusers`) brings path and
        prediction along.
    x_init : Tensor (B, ...)
        State at node 0, usually `path.prior(shape, generator)`.
    path : GaussianPath, or the StochasticInterpolant of a bridge
        Required unless the model carries one or `grid` is Nodes. On a bridge x_init is the source.
    method : str, Table or path of a file
        A name of `list_methods()`, or of `list_adaptive()` for a method that chooses its own steps; or a table, or the
        .safetensors or .json file of one, which has its own levels: then no nfe, steps, grid and options are given. By
        default what `default_settings` has for the budget and the guidance, with the grid unless one is given.
    nfe, steps : int
        `nfe` is an upper bound on network calls, `steps` the number of steps; give one. Default nfe=10. Adaptive
        methods take no steps, and give up (`AdaptiveError`) when they need more than `nfe` calls, by default never.
    grid : str, increasing times, or Nodes
        A name of `list_grids()`, for a named method by default "logsnr", or the grid itself (then nfe and steps are not
        given). For adaptive methods two path times, by default the whole path.
    grid_options : mapping
        Options of the grid, such as {"rho": 5.0}.
    prediction : {"data", "noise", "velocity", "v", "score"}
        What the model returns; default the model's own, else "data".
    thresholding : callable, optional
        Map of the data prediction, such as `DynamicThreshold(0.995)` or `StaticThreshold(1.0)`.
    seed, sample_offset
        Noise is keyed by (seed, sample_offset + b, row, slot), so any batch split gives the same samples.
    chunk_size : int, optional
        Largest batch given to the model at once, to bound memory.
    **options
        Options of the method, and afs.

    Other parameters are those of `run`.

    Returns
    -------
    Tensor (B, ...), or Result with full=True.

    Raises
    ------
    ValueError
        Before any network call, when something asked for is unknown, impossible or inconsistent, or a table was fitted
        to another kind of network.
    """
    check_start(x_init, guidance)
    path = path if path is not None else getattr(model, "path", None)
    prediction = prediction or getattr(model, "prediction", None) or "data"
    size = _chunk(len(x_init), chunk_size, (*guidance_hooks(guidance), *hooks))
    common: dict[str, Any] = {
        "prediction": prediction,
        "guidance": guidance,
        "thresholding": thresholding,
        "seed": seed_of(seed) if isinstance(seed, torch.Generator) else seed,
        "progress": progress,
        "differentiable": differentiable,
    }
    of_tables: dict[str, Any] = {"noise": noise, "hooks": hooks, "callback": callback}
    batched: dict[str, Any] = {"model_kwargs": model_kwargs}
    if isinstance(method, str) and method in list_adaptive():
        refused = {"steps": steps, "grid_options": grid_options, "anchors": anchors, **of_tables}
        adaptive = prepare(
            method, path, nfe=nfe, grid=DEFAULT_GRID if grid is None else grid, refused=refused, options=options
        )
        size = 1 if adaptive.per_sample else size
        one: Callable[..., Any] = partial(adaptive.run, model, **common)
    else:
        given: dict[str, Any] = {"grid": grid, "grid_options": grid_options, **options}
        kind: dict[str, Any] = {"prediction": prediction, "guided": is_guided(guidance)}
        table = plan(path, method, nfe=nfe, steps=steps, **kind, **given)
        if is_table(method) or table.provenance:  # also a method with statistics of a network
            check_fit(table, path=path, prediction=prediction, guidance=guidance)
        one = partial(run, table, model, full=True, **common, **of_tables)
        batched["anchors"] = anchors
    result = _in_chunks(one, x_init, size, sample_offset, batched)
    return result if full else result.sample


def plan(
    path: Process | None,
    method: str | Table | os.PathLike[str] | None = None,
    *,
    nfe: int | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    grid_options: Mapping[str, Any] | None = None,
    prediction: str | None = None,
    guided: bool = False,
    **options: Any,
) -> Table:
    """The table that `sample` would run, without a model; arguments as in `sample`.

    Adaptive methods have none. `prediction` and `guided` (see `defaults.is_guided`) matter for the default only.

    Raises
    ------
    ValueError
        Contradictory sizes, an unknown name, or an nfe below what one step of the method costs.
    """
    if method is not None and is_table(method):
        given = {"nfe": nfe, "steps": steps, "grid": grid, "grid_options": grid_options, **options}
        if extra := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"a table has its own levels and coefficients; leave out {', '.join(extra)}")
        return open_table(method)
    if method is None:
        calls = _calls(nfe, steps, grid)
        analytic = steps is None and grid is None
        chosen = default_settings(calls, path, prediction=prediction, guided=guided, analytic=analytic)
        method, options = chosen.method, {**chosen.options, **options}
        if grid is None:
            grid, grid_options = chosen.grid, {**chosen.grid_options, **(grid_options or {})}
    assert isinstance(method, str)
    _check_method(method)
    grid = DEFAULT_GRID if grid is None else grid
    if not isinstance(grid, str):
        if nfe is not None or steps is not None:
            raise ValueError("an explicit grid fixes the number of steps; leave out nfe and steps")
        nodes = grid if isinstance(grid, Nodes) else make_nodes(_required(path), grid, **(grid_options or {}))
        return build_table(method, nodes, **options)
    _check_sizes(nfe, steps)
    given = grid_info(grid).options_for(method, options, grid_options)

    def build(n: int) -> Table:
        return build_table(method, make_nodes(_required(path), grid, n, **given), **options)

    if steps is not None:
        return build(steps)
    budget = DEFAULT_NFE if nfe is None else nfe
    if "method" in given:  # levels sought for the method take long, and how many fit shows on others just as well
        usual = plan(path, method, nfe=budget, **options)
        table = build(len(usual.nodes["signal"]) - 1)
        if table.evaluations <= budget:
            return table
    return _largest_within(build, budget, method)


def _largest_within(build: Callable[[int], Table], budget: int, method: str) -> Table:
    """The table of most steps with at most `budget` evaluations; evaluations grow with steps."""
    if budget < 1:
        raise ValueError(f"nfe={budget!r} is not possible; at least 1 evaluation is needed")
    for steps in (budget + 1, budget):  # one step more where the first call is analytic
        table = build(steps)
        if table.evaluations <= budget:
            return table
    best = build(1)
    if budget < best.evaluations:
        raise ValueError(
            f"nfe={budget!r} is below the {best.evaluations} evaluations that one step of {method!r} costs; raise nfe"
        )
    low, high = 1, budget
    while high - low > 1:
        middle = (low + high) // 2
        table = build(middle)
        low, high, best = (middle, high, table) if table.evaluations <= budget else (low, middle, best)
    return best


def _calls(nfe: int | None, steps: int | None, grid: GridLike | None) -> int:
    """Size of a run, roughly: the budget, or the number of steps."""
    _check_sizes(nfe, steps)
    if isinstance(grid, Nodes):
        return grid.steps
    if grid is not None and not isinstance(grid, str):
        return max(1, len(grid) - 1)
    return next((size for size in (nfe, steps) if size is not None), DEFAULT_NFE)


def _check_sizes(nfe: int | None, steps: int | None) -> None:
    for name, size in (("nfe", nfe), ("steps", steps)):
        if size is not None and not isinstance(size, int):
            raise ValueError(f"{name}={size!r} is not possible; it must be a whole number")
    if nfe is not None and steps is not None:
        raise ValueError(f"give nfe (={nfe}) or steps (={steps}), not both")


def _check_method(method: str) -> None:
    if method in list_adaptive():
        raise ValueError(f"method {method!r} chooses its steps while it runs and has no table; use sample(...)")
    if method not in list_methods():
        raise unknown_name("method", method, [*list_methods(), *list_adaptive()])


def _required(path: Process | None) -> Process:
    if path is None:
        raise ValueError(
            "path is missing: pass path=LinearPath() or whatever the model was trained on, or grid=Nodes(...)"
        )
    return path


def _chunk(batch: int, chunk_size: int | None, hooks: Sequence[Hook]) -> int:
    """Largest batch of one run."""
    size = batch if chunk_size is None else chunk_size
    if size < 1:
        raise ValueError(f"chunk_size={chunk_size!r} is not possible; it must be at least 1")
    if size < batch and any(hook.whole_batch for hook in hooks):
        raise ValueError(
            f"chunk_size={chunk_size!r} would part samples that a hook lets interact; leave it out, and bound the "
            "memory of the network with smc.Chunked(model, size)"
        )
    return size


def _part(values: Mapping[str, Any] | None, part: slice, batch: int) -> dict[str, Any]:
    return {k: v[part] if isinstance(v, Tensor) and v.shape[:1] == (batch,) else v for k, v in (values or {}).items()}


def _in_chunks(
    one: Callable[..., Any], x_init: Tensor, size: int, offset: int, batched: Mapping[str, Mapping[str, Any] | None]
) -> Result:
    """`one` for each chunk of at most `size` samples, with its part of the mappings in `batched`, joined."""
    results: list[Result] = []
    for start in range(0, len(x_init), size):
        part = slice(start, min(start + size, len(x_init)))
        own = {name: _part(values, part, len(x_init)) for name, values in batched.items()}
        results.append(one(x_init[part], samples=range(offset + part.start, offset + part.stop), **own))
    most = max(results, key=lambda r: r.evaluations)
    if len(results) == 1:
        return most
    weights = [r.log_weights for r in results]
    joined = torch.cat([w for w in weights if w is not None]) if all(w is not None for w in weights) else None
    return Result(torch.cat([r.sample for r in results]), most.evaluations, most.table, joined, most.options)
