"""What a run of a tiny pipeline did, and what `sample` makes of the same."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pathline.samplers import Hook, WrappedModel, from_diffusers, sample
from pathline.samplers.schedulers import PathlineScheduler

from .pipelines import BATCH, Arguments, Tiny, quiet


@dataclass
class Log:
    """Network calls (their bound arguments), the scheduler's results, and the latents of every callback."""

    calls: list[Arguments] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    shown: list[Tensor] = field(default_factory=list)
    result: Any = None


@contextmanager
def recorded(pipe: Any, network: str) -> Iterator[Log]:
    """Log the calls of a pipeline's network and of its scheduler's `step`."""
    log, net, scheduler = Log(), getattr(pipe, network), pipe.scheduler
    signature = inspect.signature(net.forward)
    hook = net.register_forward_pre_hook(
        lambda _, args, kwargs: log.calls.append(dict(signature.bind(*args, **kwargs).arguments)), with_kwargs=True
    )
    step = scheduler.step

    @functools.wraps(step)  # pipelines look at the signature
    def logged(*args: Any, **kwargs: Any) -> Any:
        found = step(*args, **kwargs)
        log.states.append(found[0].clone())
        return found

    scheduler.step = logged
    try:
        yield log
    finally:
        hook.remove()
        del scheduler.step


def drive(tiny: Tiny, pipe: Any, steps: int, seed: int = 4, **extra: Any) -> Log:
    """Run a pipeline and say what happened."""
    quiet(pipe)
    given: Arguments = {**tiny.arguments(), **tiny.start_arguments(seed), "num_inference_steps": steps, **extra}
    with recorded(pipe, tiny.network) as log:
        if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:

            def show(_: Any, index: int, time: Tensor, values: Arguments) -> Arguments:
                log.shown.append(values["latents"].clone())
                return {}

            given.setdefault("callback_on_step_end", show)
        log.result = pipe(**given)[0]
    return log


def guided(tiny: Tiny, pipe: Any, log: Log) -> Callable[[Tensor, Tensor], Tensor]:
    """The pipeline's network with its conditions and guidance, as a function of latents and training label.

    Everything but latents and time is taken from the log of a run; arithmetic around it is float64.
    """
    net = getattr(pipe, tiny.network)
    calls = log.calls[: tiny.calls]
    state = next(name for name in ("sample", "hidden_states") if name in calls[0])

    def network(x: Tensor, label: Tensor) -> Tensor:
        outputs = []
        for call in calls:
            copies = len(call[state]) // len(x)
            time = (label[0] * tiny.unit).to(call["timestep"].dtype).expand(call["timestep"].shape)
            found = net(**{**call, state: torch.cat([x] * copies).to(call[state].dtype), "timestep": time})
            outputs.append((found[0] if isinstance(found, tuple) else found.sample).double())
        return tiny.guide(outputs, tiny.scale)

    return network


class Queries(Hook):
    """Keeps the states a table calls the network at."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def before_model(self, state: Any, query: Tensor) -> None:
        if state.table.rows[state.row].calls_network:
            self.found.append(query.clone())


def reference(
    tiny: Tiny, pipe: Any, log: Log, *, start: Tensor | None = None, nodes: Any = None, seed: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """`sample(...)` in float64 on the scheduler's nodes: the result, and the state after every network call.

    `seed` keys the noise; the start is the one of `drive`, on the first of all nodes, unless given.
    """
    scheduler: PathlineScheduler = pipe.scheduler
    wrapped: WrappedModel = from_diffusers(guided(tiny, pipe, log), scheduler)
    table, queries = scheduler.table, Queries()
    found = sample(
        wrapped,
        (tiny.start() if start is None else start).double(),
        method=table.method,
        grid=scheduler.nodes if nodes is None else nodes,
        seed=seed,
        hooks=[queries],
        **{key: value for key, value in table.options.items() if value is not None},
    )
    return found, [*queries.found[1:], found]


def farthest(log: Log, expected: list[Tensor]) -> float:
    """Largest relative error of the scheduler's results; the second half of a doubled batch is left out."""
    pairs = zip(log.states, expected, strict=True)
    return max(float((ours[:BATCH].double() - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)
