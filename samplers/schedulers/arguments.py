"""The arguments of `set_timesteps` and `step`, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .data_range import Rule
from .spacing import Spacing

# What DDIMPipeline always passes. A clipped run always stores what agrees with the clipped data, as True asks for.
_HARMLESS = {"eta": (0.0, None), "use_clipped_model_output": (False, None, True)}


class Request(NamedTuple):
    """One `set_timesteps` in plain numbers: its lists, and what the config adds.

    `spacing` is how the scheduler that the config comes from spaces its levels, `rule` what the config does to the data
    prediction.
    """

    steps: int
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    mu: float | None = None
    shift: float = 1.0
    spacing: Spacing = Spacing()
    rule: Rule | None = None


def check_numbers(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless the counts and shifts of a scheduler's config are positive."""
    steps = config["num_train_timesteps"]
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"num_train_timesteps={steps!r} is not possible; it is a whole number of at least 1")
    for key in ("shift", "flow_shift"):
        if not 0 < float(config[key]) < math.inf:
            raise ValueError(f"{key}={config[key]!r} is not possible; it must be positive and finite")


def read_request(steps: int | None, timesteps: Any, sigmas: Any) -> Request:
    """The arguments of `set_timesteps`, checked; a trailing sigma 0 is dropped, with its timestep.

    Lists count before `steps`.

    Raises
    ------
    ValueError
        No size, lists of different lengths, not a whole number of at least one step, or entries that are not finite.
    """
    labels, levels = _numbers("timesteps", timesteps), _numbers("sigmas", sigmas)
    if levels is not None and len(levels) > 1 and levels[-1] == 0.0:
        if labels is not None and len(labels) == len(levels):
            labels = labels[:-1]
        levels = levels[:-1]
    if labels is not None and levels is not None and len(labels) != len(levels):
        raise ValueError(f"timesteps and sigmas have {len(labels)} and {len(levels)} entries; they must agree")
    given = levels if levels is not None else labels
    if given is None and steps is None:
        raise ValueError("set_timesteps needs num_inference_steps, timesteps or sigmas")
    if given is not None:  # pipelines send their default number along with a list of the user's
        return Request(len(given), labels, levels)
    count = int(steps or 0)
    if isinstance(steps, bool) or count < 1 or count != steps:
        raise ValueError(f"num_inference_steps={steps!r} is not possible; a whole number, at least 1 step, is needed")
    return Request(count)


def _numbers(name: str, values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    flat = np.asarray(values, dtype=np.float64)
    if flat.ndim != 1 or not len(flat) or not np.isfinite(flat).all():
        raise ValueError(f"{name} must be a non-empty list of finite numbers, got {values!r}")
    return tuple(flat.tolist())


def refuse_arguments(kwargs: Mapping[str, Any]) -> None:
    """Raise for arguments of other schedulers, unless they carry the value that changes nothing."""
    for key, value in kwargs.items():
        if key not in _HARMLESS or value not in _HARMLESS[key]:
            raise ValueError(
                f"step does not take {key}={value!r}; stochasticity and other settings go into the config's 'pathline'"
            )
