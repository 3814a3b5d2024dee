"""What a scheduler's `step` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from ..combine import affine


@dataclass
class PathlineSchedulerOutput(BaseOutput):
    """What `step` returns.

    Attributes
    ----------
    prev_sample : Tensor
        State at which the network is called next; after the last call the sample.
    pred_original_sample : Tensor or None
        Data prediction, clipped or thresholded where the config says so; None where the network's output does not
        determine it.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class Pending:
    """A data prediction that costs nothing until somebody looks at it, as pipelines hardly ever do.

    Parameters
    ----------
    query, raw : Tensor (B, ...)
        State, and network output there; they must not be changed meanwhile.
    weights : (c_x, c_out)
        The prediction is c_x·query + c_out·raw.
    dtype : of the result
    """

    def __init__(self, query: Tensor, raw: Tensor, weights: tuple[float, float], dtype: torch.dtype) -> None:
        self._parts: tuple[Tensor, Tensor, tuple[float, float]] | None = (query, raw, weights)
        self._dtype = dtype
        self._value: Tensor | None = None

    def __call__(self) -> Tensor:
        """The prediction, the same tensor every time."""
        if self._value is None:
            assert self._parts is not None
            query, raw, weights = self._parts
            self._value = affine(query, raw, *weights).to(self._dtype)
            self._parts = None
        return self._value


Prediction = Tensor | Pending | None


def resolved(prediction: Prediction) -> Tensor | None:
    """The prediction as a tensor."""
    return prediction() if isinstance(prediction, Pending) else prediction


class StepPair(tuple[Tensor, Tensor | None]):
    """(prev_sample, pred_original_sample), of which the second is computed when somebody takes it."""

    def __new__(cls, previous: Tensor, prediction: Prediction) -> StepPair:
        """Pair a state with a prediction that may be pending."""
        return super().__new__(cls, (previous, prediction))  # type: ignore[type-var]

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(0) if place == 0 else tuple(self)[place]

    def __iter__(self) -> Iterator[Any]:
        for prediction in super().__iter__():
            yield resolved(prediction)
