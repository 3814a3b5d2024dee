"""Any of the five predictions from any other.

With D = E[data|x] and N = E[noise|x], x = signal * D + noise * N, every prediction is a linear form
p D + q N: data (1, 0), noise (0, 1), velocity (signal_rate, noise_rate), v (-noise, signal), and
score = -N / noise. So one 2x2 solve turns any into any other. Its determinant is -noise for data, signal for
noise, minus the Wronskian for velocity and signal^2 + noise^2 for v: signal_rate alone is never a divisor.
"""

import math
from typing import Any

from torch import Tensor

from .errors import unknown_name
from .path import PREDICTIONS, PathPoint
from .tensors import as_float_tensor, holds, match


def _form(kind: str, point: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
    """Weights (p, q) of D and N; a score stands for the noise here."""
    if kind == "data":
        return 1.0, 0.0
    if kind == "velocity":
        return point[2], point[3]
    if kind == "v":
        return -point[1], point[0]
    return 0.0, 1.0


def _solve(point: tuple[Any, Any, Any, Any], source: str, target: str) -> tuple[Any, Any, Any]:
    """Numerators of (c_x, c_out) and their common divisor, for floats and tensors alike.

    The score's own factors are included: a score source multiplies by -noise, a score target divides by it.
    """
    signal, noise = point[0], point[1]
    noise_like = ("noise", "score")
    if source in noise_like and target in noise_like:
        top_x, top_out, divisor = 0.0, 1.0, 1.0
    else:
        p, q = _form(source, point)
        p_target, q_target = _form(target, point)
        top_x = p_target * q - p * q_target
        top_out = signal * q_target - noise * p_target
        divisor = signal * q - noise * p
    if source == "score":
        top_out = -noise * top_out
    if target == "score":
        divisor = -noise * divisor
    return top_x, top_out, divisor


def _check_names(source: str, target: str) -> None:
    for kind, name in (("source prediction", source), ("target prediction", target)):
        if name not in PREDICTIONS:
            raise unknown_name(kind, name, PREDICTIONS)


def _refusal(source: str, target: str, signal: object, noise: object) -> ValueError:
    return ValueError(
        f"a {source} prediction does not determine the {target} at signal {signal}, noise {noise}: "
        "the conversion divides by zero or a rate is infinite there; use another "
        "prediction or a time away from that end"
    )


def coefficients(
    signal: float,
    noise: float,
    signal_rate: float | None,
    noise_rate: float | None,
    source: str,
    target: str,
) -> tuple[float, float]:
    """Host coefficients (c_x, c_out) with target = c_x * x + c_out * output.

    Parameters
    ----------
    signal, noise : float
        The path at the query.
    signal_rate, noise_rate : float or None
        d/dt of both; needed only when one side is the velocity.
    source, target : str
        Two of `PREDICTIONS`.

    Raises
    ------
    ValueError
        If a name is unknown, a needed rate is missing, or the conversion is not defined at this point (for
        instance noise to data at signal 0).
    """
    _check_names(source, target)
    if source == target:
        return 0.0, 1.0
    if signal_rate is None or noise_rate is None:
        if "velocity" in (source, target):
            raise ValueError(
                f"converting {source} to {target} needs signal_rate and noise_rate, which are not known "
                "here; give the path, or the rates of the nodes"
            )
        signal_rate = noise_rate = 0.0
    top_x, top_out, divisor = _solve((signal, noise, signal_rate, noise_rate), source, target)
    if divisor == 0.0:
        raise _refusal(source, target, signal, noise)
    c_x, c_out = top_x / divisor, top_out / divisor
    if not (math.isfinite(c_x) and math.isfinite(c_out)):
        raise _refusal(source, target, signal, noise)
    return float(c_x), float(c_out)


def convert(x: Tensor, output: Tensor, point: PathPoint, source: str, target: str, *, checked: bool = True) -> Tensor:
    """Turn a network output of kind `source` at state `x` into kind `target`.

    Parameters
    ----------
    x, output : Tensor, shape (B, ...)
        State and network output.
    point : PathPoint
        The path at the times of the samples; entries of shape () or (B,).
    source, target : str
        Two of `PREDICTIONS`.
    checked : bool
        Look whether the conversion is defined at every sample, which waits for the values.

    Raises
    ------
    ValueError
        If a name is unknown, or the conversion is not defined at some sample. Points on an accelerator are
        not looked at; there the result has infinities or NaN instead.
    """
    _check_names(source, target)
    if source == target:
        return output
    signal, noise, signal_rate, noise_rate = (as_float_tensor(entry) for entry in point)
    top_x, top_out, divisor = _solve((signal, noise, signal_rate, noise_rate), source, target)
    c_x, c_out = as_float_tensor(top_x / divisor), as_float_tensor(top_out / divisor)
    if checked and not holds(c_x.isfinite() & c_out.isfinite()):
        raise _refusal(source, target, signal.detach().tolist(), noise.detach().tolist())
    return match(c_x, output) * x + match(c_out, output) * output
