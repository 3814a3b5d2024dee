"""The one loop that runs any table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .anchors import anchor_values
from .border import Model, TableBorder
from .combine import Combiner, check_table_fits
from .describe import value_names
from .guidance import Guidance, guidance_hooks
from .keyed_noise import run_keys, run_normals, seed_of
from .run_state import Callback, Hook, NoiseSource, NonFiniteError, Result, RunState, StepInfo
from .table import Row, Table
from .thresholding import Thresholding

NEAR_SOURCE = 0.9
"""A bridge that starts where the source has at least this weight starts at its source, as published samplers do."""


def run(
    table: Table,
    model: Model,
    x_init: Tensor,
    *,
    prediction: str = "data",
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    thresholding: Thresholding | None = None,
    seed: int | torch.Generator = 0,
    samples: Sequence[int] | Tensor | None = None,
    noise: NoiseSource | None = None,
    anchors: Mapping[str, Tensor] | None = None,
    hooks: Sequence[Hook] = (),
    callback: Callback | None = None,
    progress: bool = False,
    differentiable: bool = False,
    full: bool = False,
) -> Tensor | Result:
    """Run a table.

    Parameters
    ----------
    table : Table
    model : callable (x, t, **model_kwargs) -> output
        t has shape (B,) and equals the nodes' time, float64 if x is, else float32.
    x_init : Tensor (B, ...)
        State at node 0. Half-precision states are carried in float32; the network sees x_init's dtype.
    prediction : {"data", "noise", "velocity", "v", "score"}
        What the model returns.
    guidance : Guidance, optional
    thresholding : callable, optional
        Map of the data prediction, after guidance and before it is stored, such as `DynamicThreshold(0.995)`.
    seed : int or torch.Generator
        Keys the noise of stochastic tables; of a generator only one 64-bit seed is drawn.
    samples : sequence of int, optional
        Global sample indices for the noise keys; default 0..B−1.
    noise : NoiseSource, optional
        Replaces the keyed noise (a Brownian path, stored draws).
    anchors : mapping of name to Tensor
        The constants named in `table.anchors`, over those that the table brings along.
    hooks, callback : see `Hook` and `StepInfo`
    progress : bool
        Show a progress bar.
    differentiable : bool
        Keep the graph for gradients with respect to x_init, model parameters or anchors.
    full : bool
        Return a `Result` instead of the tensor.

    Raises
    ------
    ValueError
        Before any call: wrong shapes, missing anchors, a prediction the table cannot use.
    NonFiniteError
        After the run, naming the first row whose registers were not finite.
    """
    check_start(x_init, guidance)
    check_table_fits(table, x_init.shape[1:])
    values = _initial_values(table, x_init, anchors or {})
    border = TableBorder(table, model, x_init, prediction, guidance, thresholding)
    index = _sample_indices(samples, x_init)
    if isinstance(seed, torch.Generator):
        seed = seed_of(seed)
    draw = noise or _keyed_source(table, seed, index)
    like = values[0]
    state = RunState(
        table, values, index, dict(model_kwargs or {}), seed=seed, prediction=prediction, extras=border.memory
    )
    hooks = (*guidance_hooks(guidance), *hooks)
    combine = Combiner(x_init.device, table.basis)
    norms: list[tuple[list[int], list[Tensor]]] = []
    with torch.set_grad_enabled(differentiable), _bar(table, progress) as tick:
        for k, row in enumerate(table.rows):
            state.row = k
            _evaluate(state, border, row, hooks, combine)
            for slot, z in enumerate(row.noises):
                if z >= 0:
                    state.values[z] = draw(k, slot, like)
            for target, terms in row.updates:
                state.values[target] = combine(terms, state.values)
            for hook in hooks:
                hook.after_row(state)
            if callback is not None:
                callback(_info(state, row))
            norms.append(_norms(state.values))
            for value in table.last_uses[k]:
                state.values.pop(value, None)
            tick(row.calls_network)
    _check_finite(table, norms)
    sample = state.values[table.result].to(x_init.dtype)
    if not full:
        return sample
    protocol = {"prediction": prediction, "seed": seed, "forwards": border.forwards}
    return Result(sample, border.evaluations, table, state.log_weights, protocol)


def _evaluate(state: RunState, border: TableBorder, row: Row, hooks: Sequence[Hook], combine: Combiner) -> None:
    if row.query is None or row.output is None:
        return
    query = state.values[row.query]
    for hook in hooks:
        changed = hook.before_model(state, query)
        query = query if changed is None else changed
    if row.estimate is not None:
        output = combine(row.estimate, state.values)
    else:
        output = border(state.row, row, query, state.kwargs, state.values.get(1) if state.table.anchors else None)
    for hook in hooks:
        changed = hook.after_model(state, query, output)
        output = output if changed is None else changed
    state.values[row.output] = output


def check_start(x: Tensor, guidance: Any = None) -> None:
    """Raise ValueError unless `x` is a non-empty, finite, floating-point batch and `guidance` can be called."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1 or len(x) == 0:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x_init must be a floating-point tensor of shape (B, ...) with B ≥ 1, got {shape}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x_init holds NaN or infinite values")
    if isinstance(guidance, Hook) and not callable(guidance):
        name = type(guidance).__name__
        raise ValueError(f"guidance={name}(...) is not possible; it is a hook, pass it as hooks=[{name}(...)]")
    if guidance is not None and not callable(guidance):
        raise ValueError(f"guidance={guidance!r} is not possible; pass ClassifierFree(scale, unconditional={{...}})")


def _initial_values(table: Table, x: Tensor, anchors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    if "source" in table.anchors and table.start.anchor > NEAR_SOURCE:
        anchors = {"source": x, **anchors}
    start = x.to(torch.promote_types(x.dtype, torch.float32))
    return {0: start, **anchor_values(table, start, anchors)}


def _sample_indices(samples: Sequence[int] | Tensor | None, x: Tensor) -> Tensor:
    if samples is None:
        return torch.arange(len(x), device=x.device)
    index = torch.as_tensor(samples, dtype=torch.int64, device=x.device)
    if index.shape != (len(x),):
        raise ValueError(
            f"samples has shape {tuple(index.shape)}; one index for each of the {len(x)} samples is needed"
        )
    return index


def _keyed_source(table: Table, seed: int, index: Tensor) -> NoiseSource:
    draws = [(k, slot) for k, row in enumerate(table.rows) for slot, z in enumerate(row.noises) if z >= 0]
    places = torch.tensor(draws, dtype=torch.int64).reshape(-1, 2).to(index.device)
    keys = dict(zip(draws, run_keys([seed], index, places), strict=True))
    return lambda row, slot, like: run_normals(keys[row, slot], like)


def _info(state: RunState, row: Row) -> StepInfo:
    """After the row: its query and output, and the newest state computed."""
    newest = row.updates[-1].target if row.updates else row.query
    assert newest is not None
    get = state.values.get
    return StepInfo(
        row=state.row,
        rows=len(state.table.rows),
        time=row.level.time,
        signal=row.level.signal,
        noise=row.level.noise,
        query=None if row.query is None else get(row.query),
        output=None if row.output is None else get(row.output),
        form=row.form,
        state=state.values[newest],
    )


def _norms(values: Mapping[int, Tensor]) -> tuple[list[int], list[Tensor]]:
    # kept on the device: looking at them here would stall the loop
    return list(values), list(torch._foreach_norm([v.detach() for v in values.values()]))


def _check_finite(table: Table, norms: list[tuple[list[int], list[Tensor]]]) -> None:
    if not norms:
        return
    flat = torch.stack([n.double() if n.device.type != "mps" else n for _, row in norms for n in row]).cpu()
    if bool(torch.isfinite(flat).all()):
        return
    names, start = value_names(table), 0
    for k, (keys, row) in enumerate(norms):
        here = flat[start : start + len(row)].tolist()
        start += len(row)
        if not np.isfinite(here).all():
            level = table.rows[k].level
            listed = ", ".join(f"‖{names[key]}‖ = {value:.4g}" for key, value in zip(keys, here, strict=True))
            raise NonFiniteError(
                f"{table.method!r} met a non-finite value at row {k} of {len(table.rows)} (time {level.time:g}, "
                f"signal {level.signal:g}, noise {level.noise:g}): {listed}"
            )


@contextmanager
def _bar(table: Table, shown: bool) -> Iterator[Callable[[bool], None]]:
    if not shown:
        yield lambda called: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=table.evaluations, desc=table.method, unit="call") as bar:

        def tick(called: bool) -> None:
            bar.update(int(called))

        yield tick
