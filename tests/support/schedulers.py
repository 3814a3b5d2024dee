"""What the scheduler tests share: networks, schedulers of both families, and the loop of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from pathline.samplers import list_methods, method_info
from pathline.samplers.schedulers import PathlineScheduler

METHODS = [name for name in list_methods() if not method_info(name).requires]
BETAS = {"prediction_type": "epsilon", "timestep_spacing": "trailing"}


def make(family: str, **pathline: Any) -> PathlineScheduler:
    """A scheduler of the "betas" or the "flow" family; flow labels of 1/64 steps are exact in float32."""
    return PathlineScheduler(pathline=pathline, **(BETAS if family == "betas" else {"num_train_timesteps": 1024}))


def latents(seed: int = 1, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(x: Tensor, label: Tensor | float, **kwargs: Any) -> Tensor:
    """Any function of state and label."""
    share = torch.as_tensor(label, dtype=torch.float64).reshape(-1)[0] / 1000
    return (torch.tanh(1.3 * x.double() + share) * 0.7 + 0.2 * x).to(x.dtype)


def steps_over(scheduler: PathlineScheduler, x: Tensor, times: Tensor, **options: Any) -> Tensor:
    """What a pipeline does from the first of `times` to the last."""
    for t in times:
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x


def point_mass(scheduler: PathlineScheduler, data: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The output of a network that knows the data."""
    one = torch.ones((), dtype=torch.float64)
    signal, noise = scheduler.add_noise(one, 0 * one, t), scheduler.add_noise(0 * one, one, t)
    eps = (x - signal * data) / noise
    return (eps - data if scheduler.config.prediction_type == "flow_prediction" else eps).to(x.dtype)


def shared_out(*factors: Sequence[Any], every: int) -> list[Any]:
    """All combinations as parameters, all but one in `every` of them marked slow; each entry keeps some fast ones."""
    found = []
    for places in product(*(range(len(factor)) for factor in factors)):
        entries = [factor[place] for factor, place in zip(factors, places, strict=True)]
        found.append(pytest.param(*entries, marks=[pytest.mark.slow] if sum(places) % every else []))
    return found
