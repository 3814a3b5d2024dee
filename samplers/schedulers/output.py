"""What a scheduler's `step` returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class Pending(ABC):
    """A data prediction that costs nothing until somebody takes it, as pipelines hardly ever do.

    Calling it gives the prediction, the same tensor every time.
    """

    __slots__ = ("__weakref__", "_dtype", "_found")

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._found: Tensor | None = None

    def __call__(self) -> Tensor:
        """The prediction; errors as in `_compute`."""
        if self._found is None:
            self._found = self._compute().to(self._dtype)
        return self._found

    @abstractmethod
    def _compute(self) -> Tensor:
        """The prediction, in the dtype of the run."""


class FromRegister(Pending):
    """The prediction is `scale` times a register (B, ...) that the run keeps as number `value`.

    The number leaves `private` when the register itself is handed out.
    """

    __slots__ = ("_private", "_register", "_scale", "_value")

    def __init__(self, dtype: torch.dtype, register: Tensor, scale: float, value: int, private: set[int]) -> None:
        self._dtype, self._found = dtype, None
        self._register, self._scale, self._value, self._private = register, scale, value, private

    def _compute(self) -> Tensor:
        if self._scale != 1.0:
            return self._scale * self._register
        self._private.discard(self._value)
        return self._register


class FromParts(Pending):
    """The prediction is c_x·query + c_out·raw, of tensors (B, ...) that others may hold, for weights (c_x, c_out)."""

    __slots__ = ("_changes", "_parts", "_weights")

    def __init__(self, dtype: torch.dtype, query: Tensor, raw: Tensor, weights: tuple[float, float]) -> None:
        self._dtype, self._found = dtype, None
        self._parts, self._weights = (query, raw), weights
        self._changes = changes_of(query), changes_of(raw)

    def _compute(self) -> Tensor:
        """Raises RuntimeError where the state or the network's output was changed in place since the step."""
        query, raw = self._parts
        if (changes_of(query), changes_of(raw)) != self._changes:
            raise RuntimeError(
                "the state or the network output of the last step was changed in place, and with it the data "
                "prediction is lost; read pred_original_sample before, or call step with return_dict=True"
            )
        return affine(query, raw, *self._weights)


Prediction = Tensor | Pending | None


def resolved(prediction: Prediction) -> Tensor | None:
    """The prediction as a tensor."""
    return prediction() if isinstance(prediction, Pending) else prediction


class StepPair(tuple[Any, ...]):
    """(prev_sample, pred_original_sample), of which the second is computed when somebody takes it."""

    def __getitem__(self, place: Any) -> Any:
        return tuple.__getitem__(self, 0) if place == 0 else tuple(self)[place]

    def __iter__(self) -> Iterator[Any]:
        for prediction in super().__iter__():
            yield resolved(prediction)

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(self),)

    def __add__(self, other: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self) + tuple(other)

    def __radd__(self, other: tuple[Any, ...]) -> tuple[Any, ...]:
        return other + tuple(self)

    def __mul__(self, times: Any) -> tuple[Any, ...]:
        return tuple(self) * int(times)

    def __repr__(self) -> str:
        return repr(tuple(self))


def changes_of(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None where it does not tell, 0 while a compiler traces the loop."""
    if torch.compiler.is_compiling():
        return 0
    return None if tensor.is_inference() else tensor._version
