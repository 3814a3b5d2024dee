"""Small tensor helpers shared by paths, conversions and closed-form models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Time = float | Tensor
_HALF = (torch.float16, torch.bfloat16)


def widen(value: Tensor) -> Tensor:
    """Give half-precision tensors as float32; leave all others as they are."""
    return value.float() if value.dtype in _HALF else value


def holds(condition: Tensor) -> bool:
    """Tell whether a boolean tensor is true everywhere, when that can be told without waiting.

    Tensors on an accelerator, and tensors inside ``vmap`` or a compiled function, are not looked at (reading
    them would stall the device or break the trace) and count as true.
    """
    if condition.device.type != "cpu":
        return True
    try:
        return bool(condition.all())
    except RuntimeError:
        return True


def as_float_tensor(value: Any) -> Tensor:
    """Give `value` as a floating tensor: all but floating tensors become float64."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.to(torch.float64)
    return torch.as_tensor(value, dtype=torch.float64)


def as_time(t: Any) -> Tensor:
    """Give times as a floating tensor and check that they lie in [0, 1].

    Raises
    ------
    ValueError
        If a time is outside [0, 1] or NaN. Tensors on an accelerator are not checked.
    """
    times = as_float_tensor(t)
    if not holds((times >= 0) & (times <= 1)):
        bad = times[~((times >= 0) & (times <= 1))].reshape(-1)[0].item()
        raise ValueError(
            f"t must lie in [0, 1] (0 = base, 1 = data), got {bad}; "
            "an index label n of N training steps is t = 1 - (n + 1) / N"
        )
    return times


def in_wide_precision(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Evaluate `function` with half-precision input raised to float32, and return the input's own type."""
    return function(widen(value)).to(value.dtype)


def match(value: Tensor, x: Tensor) -> Tensor:
    """Shape and cast a per-sample value so that it multiplies `x`.

    Parameters
    ----------
    value : Tensor
        Shape (), (1,), (B,), or already as many axes as `x`.
    x : Tensor
        Shape (B, ...).

    Raises
    ------
    ValueError
        If `value` has neither one entry nor one per sample.
    """
    value = value.to(device=x.device, dtype=x.dtype)
    if value.ndim == 0 or value.ndim == x.ndim:
        return value
    if value.ndim != 1 or x.ndim == 0 or value.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"a per-sample value must have shape (), (1,) or (B,) with B = {tuple(x.shape[:1])}, "
            f"got {tuple(value.shape)} for x of shape {tuple(x.shape)}"
        )
    return value.reshape(-1, *(1,) * (x.ndim - 1))


def time_for(t: Any, x: Tensor) -> Tensor:
    """Give times on the device of `x` and at least as wide as `x` (MPS has no float64)."""
    times = as_time(t)
    if times.device != x.device:
        if x.device.type == "mps":
            times = times.to(torch.float32)
        times = times.to(x.device)
    return times.to(x.dtype) if torch.finfo(x.dtype).bits > torch.finfo(times.dtype).bits else times
