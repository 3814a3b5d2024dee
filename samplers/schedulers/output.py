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

    Calling it gives the prediction, the same tensor every time, of memory that nobody else has.
    """

    __slots__ = ("__weakref__", "_dtype", "_found")

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._found: Tensor | None = None

    def __call__(self) -> Tensor:
        """The prediction.

        Raises
        ------
        LostPredictionError
            What it is computed from was changed in place since the step.
        """
        if self._found is None:
            self._found = self._compute().to(self._dtype)
        return self._found

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy holds the prediction, computed now."""
        try:
            return Taken, (self(),)
        except LostPredictionError:
            return Taken, (None,)

    @abstractmethod
    def _compute(self) -> Tensor:
        """The prediction, in the dtype of the run."""


class LostPredictionError(RuntimeError):
    """A data prediction was not taken in time."""

    def __init__(self) -> None:
        super().__init__(
            "the state or the network output of the last step was changed in place, and with it the data "
            "prediction is lost; read pred_original_sample before, or call step with return_dict=True"
        )


class Taken(Pending):
    """The prediction itself; None where it is lost."""

    __slots__ = ()

    def __init__(self, found: Tensor | None) -> None:
        super().__init__(torch.float32 if found is None else found.dtype)
        self._found = found

    def _compute(self) -> Tensor:
        raise LostPredictionError


class FromRegister(Pending):
    """The prediction is `scale` times a register (B, ...) that the run keeps."""

    __slots__ = ("_register", "_scale")

    def __init__(self, dtype: torch.dtype, register: Tensor, scale: float) -> None:
        self._dtype, self._found = dtype, None  # one is made in every step: no call more than needed
        self._register, self._scale = register, scale

    def _compute(self) -> Tensor:
        return unshared(self._register, self._scale)


class FromParts(Pending):
    """The prediction is c_x·query + c_out·raw, of tensors (B, ...) that others may hold, for weights (c_x, c_out)."""

    __slots__ = ("_changes", "_parts", "_weights")

    def __init__(self, dtype: torch.dtype, query: Tensor, raw: Tensor, weights: tuple[float, float]) -> None:
        super().__init__(dtype)
        self._parts, self._weights = (query, raw), weights
        self._changes = changes_of(query), changes_of(raw)

    def _compute(self) -> Tensor:
        query, raw = self._parts
        if (changes_of(query), changes_of(raw)) != self._changes:
            raise LostPredictionError
        found = affine(query, raw, *self._weights)
        return found.clone() if found is raw else found


def unshared(register: Tensor, scale: float) -> Tensor:
    """scale·register in memory of its own."""
    return register.clone() if scale == 1.0 else scale * register


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

    __rmul__ = __mul__

    def __repr__(self) -> str:
        try:
            return repr(tuple(self))
        except LostPredictionError:
            return f"({self[0]!r}, a data prediction that was not taken in time)"


def changes_of(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None where it does not tell, 0 while a compiler traces the loop."""
    if torch.compiler.is_compiling():
        return 0
    return None if tensor.is_inference() else tensor._version
