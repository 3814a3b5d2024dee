"""Moving between Gaussian paths that share the data.

States of two paths with equal lam = log(signal / noise) differ only by a factor, so a network trained on one path
serves every other: E[data|x] and E[noise|x] are the same at both. Karras et al., "Elucidating the design space",
section 2; Kingma and Gao, "Understanding diffusion objectives", section 3.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .conversions import convert
from .errors import check_name
from .path import PREDICTIONS, GaussianPath, PathPoint
from .tensors import Time, as_time, holds, match, time_for, widen

_SLACK = 1e-6


def _matching_time(source: GaussianPath, target: GaussianPath, t: Tensor) -> tuple[Tensor, Tensor]:
    """Time of equal lam on `target`, and where it exists (lam within the ends of `target`)."""
    lam = source.lam(t)
    ends = target.lam(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    slack = _SLACK * (1 + lam.abs()).nan_to_num(posinf=1.0)
    return target.time_at(lam), (lam >= ends[0] - slack) & (lam <= ends[1] + slack)


def _scale(source: PathPoint, target: PathPoint) -> Tensor:
    """Factor between the states; the norms serve at both ends, where signal or noise alone would give 0/0."""
    return torch.hypot(target.signal, target.noise) / torch.hypot(source.signal, source.noise)


def transfer(source: GaussianPath, target: GaussianPath, t: Time) -> tuple[Tensor, Tensor]:
    """Find the time on another path with the same signal-to-noise ratio, and the factor between the states.

    Parameters
    ----------
    source, target : GaussianPath
    t : float or Tensor
        Times on `source`.

    Returns
    -------
    (time, scale) : tuple of Tensor
        If x is the state of `source` at `t`, then scale * x has the law of `target` at `time`.

    Raises
    ------
    ValueError
        If `target` has no such ratio (for instance pure noise, on a path that starts with some signal). Not
        checked on an accelerator, where the nearest end is taken.
    """
    times = as_time(t)
    other, found = _matching_time(source, target, times)
    if not holds(found):
        bad = times[~found].reshape(-1)[0].item()
        ends = target.lam(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        raise ValueError(
            f"at t = {bad:g} the path {source.name!r} has log(signal / noise) = {source.lam(bad).item():g}, "
            f"which the path {target.name!r} never has: there it runs from {ends[0]:g} to {ends[1]:g}"
        )
    return other, _scale(source.at(times), target.at(other))


@dataclass(frozen=True, eq=False)
class TransferredModel:
    """A network of one path used on another; made by `transfer_model`."""

    model: Any
    trained_on: GaussianPath
    used_on: GaussianPath
    source: str
    target: str

    def __call__(self, x: Tensor, t: Time, **model_kwargs: Any) -> Tensor:
        """Evaluate at states (B, ...) and times of shape () or (B,) of the path the model is used on.

        Where the training path has no such signal-to-noise ratio, its nearest end is asked and its data
        prediction is taken over.
        """
        times = time_for(t, widen(x)).expand(x.shape[0])
        other, found = _matching_time(self.used_on, self.trained_on, times)
        here, there = self.used_on.at(times), self.trained_on.at(other)
        scale = _scale(there, here)
        inner = x / match(scale, x)
        label = other.to(x.dtype) if x.dtype == torch.float64 else other.to(torch.float32)
        output = self.model(inner, label, **model_kwargs)
        if not holds(found):
            data = convert(inner, output, there, self.source, "data")
            return convert(x, data, here, "data", self.target)
        kind = self.source
        if kind == "velocity":  # the only prediction that knows the rates of its own path
            output, kind = convert(inner, output, there, "velocity", "v"), "v"
        if kind == "v":
            output = match(scale, x) * output
        elif kind == "score":
            output = output / match(scale, x)
        return convert(x, output, here, kind, self.target)


def transfer_model(
    model: Any,
    trained_on: GaussianPath,
    used_on: GaussianPath,
    prediction: str,
    target: str | None = None,
) -> TransferredModel:
    """Use a network of one path on another.

    Parameters
    ----------
    model : callable
        model(x, t, **model_kwargs) on `trained_on`.
    trained_on, used_on : GaussianPath
    prediction : str
        What the model gives, one of `PREDICTIONS`.
    target : str, optional
        What the result shall give; the same when left out.

    Raises
    ------
    ValueError
        If a prediction is not known.
    """
    check_name("prediction", prediction, PREDICTIONS)
    target = check_name("target prediction", prediction if target is None else target, PREDICTIONS)
    return TransferredModel(model, trained_on, used_on, prediction, target)
