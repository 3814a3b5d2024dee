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
    """A data prediction that costs nothing until somebody takes it, as pipelines hardly ever do.

    Parameters
    ----------
    dtype : torch.dtype
        Of the result.
    register : Tensor (B, ...), optional
        The prediction itself, kept by the run under the number `value`, which leaves `private` when somebody takes it.
    parts : (query, raw, (c_x, c_out)), optional
        Else it is c_x·query + c_out·raw, of tensors (B, ...) that others may hold.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        register: Tensor | None = None,
        value: int | None = None,
        private: set[int] | None = None,
        parts: tuple[Tensor, Tensor, tuple[float, float]] | None = None,
    ) -> None:
        self._dtype, self._register, self._parts = dtype, register, parts
        self._value, self._private = value, private
        self._changes = None if parts is None else (changes_of(parts[0]), changes_of(parts[1]))

    def __call__(self) -> Tensor:
        """The prediction, the same tensor every time.

        Raises
        ------
        RuntimeError
            The state or the network's output was changed in place since the step.
        """
        if self._parts is not None:
            query, raw, weights = self._parts
            if (changes_of(query), changes_of(raw)) != self._changes:
                raise RuntimeError(
                    "the state or the network output of the last step was changed in place, and with it the data "
                    "prediction is lost; read pred_original_sample before, or call step with return_dict=True"
                )
            self._register, self._parts = affine(query, raw, *weights), None
        assert self._register is not None
        if self._private is not None and self._value is not None:
            self._private.discard(self._value)
        self._register, self._private = self._register.to(self._dtype), None
        return self._register


Prediction = Tensor | Pending | None


def resolved(prediction: Prediction) -> Tensor | None:
    """The prediction as a tensor."""
    return prediction() if isinstance(prediction, Pending) else prediction


class StepPair(tuple[Any, ...]):
    """(prev_sample, pred_original_sample), of which the second is computed when somebody takes it."""

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(0) if place == 0 else tuple(self)[place]

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
