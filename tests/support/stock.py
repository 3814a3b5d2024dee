"""Runs of stock schedulers in float64 beside runs of ours, state by state."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from torch import Tensor

from pathline.evals.agreement.stock import FLOW, VE, _prepared, output, start_and_noises
from pathline.samplers.schedulers import PathlineScheduler, stepper


@contextmanager
def wide_stock(
    name: str, config: dict[str, Any], powers: Tensor | None, draw: Callable[[], Tensor] | None = None
) -> Iterator[Any]:
    """A stock scheduler whose arithmetic is float64, on the given ᾱ (ours are float32 as released)."""
    cls = getattr(diffusers, name)
    with _prepared(importlib.import_module(cls.__module__), True, draw or (lambda: torch.zeros(()))):
        scheduler = cls(**config)
        if powers is not None:
            scheduler.alphas_cumprod = powers.clone()
            if hasattr(scheduler, "lambda_t"):
                scheduler.lambda_t = 0.5 * torch.log(powers / (1.0 - powers))
            if scheduler.config.get("set_alpha_to_one") is False:
                scheduler.final_alpha_cumprod = powers[0]
        yield scheduler


def pairs_of_states(
    ours: PathlineScheduler, name: str, config: dict[str, Any], steps: int, **step: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ours, theirs) after every call of a run of `steps` steps with the same network, start and draws.

    `config` is that of the stock class `name`; `step` are further arguments of its `step`.
    """
    ours.set_timesteps(steps)
    levels = [row.level for row in ours.table.rows if row.calls_network]
    powers = getattr(ours, "alphas_cumprod", torch.as_tensor(diffusers.DDPMScheduler().alphas_cumprod)).double()
    kind = config.get("prediction_type", "flow_prediction" if name in FLOW else "epsilon")
    start, noises = start_and_noises()
    calls_per_step, position = 2 if name == "KDPM2AncestralDiscreteScheduler" else 1, 0

    def stored(self: Any, row: int, slot: int, like: Tensor, generator: Any) -> Tensor:
        return noises[row // calls_per_step]

    drawn = patch.object(stepper.StepNoise, "__call__", stored)
    with drawn, wide_stock(name, config, None if name in FLOW else powers, lambda: noises[position]) as theirs:
        theirs.set_timesteps(steps)
        x, y = start, start / levels[0].signal if name in VE else start
        assert len(levels) == len(theirs.timesteps)
        for k, (level, t) in enumerate(zip(levels, theirs.timesteps, strict=True)):
            position = k // calls_per_step
            if name in VE:
                theirs.scale_model_input(y, t)
            seen = y * level.signal if name in VE else y
            y = theirs.step(output(seen, level.signal, level.noise, kind), t, y, return_dict=False, **step)[0]
            x = ours.step(output(x, level.signal, level.noise, kind), ours.timesteps[k], x, return_dict=False)[0]
            signal = levels[k + 1].signal if k + 1 < len(levels) else ours.table.end.signal
            yield x, y * signal if name in VE else y
