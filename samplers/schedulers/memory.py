"""Memory of past states, written again by the run that made them.

On the host every large tensor is mapped into memory anew, which costs several times what writing it does. An
accelerator's allocator keeps memory by itself.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

_LARGE = 1 << 17  # bytes; smaller ones the allocator has at hand
_KEPT = 4  # tensors a pipeline may still hold, of which the oldest is let go
_count_storage = getattr(torch._C, "_storage_Use_Count", None)


class Memory:
    """Tensors that a run has done with, for those that come next.

    A tensor is written again only when nobody else holds it, or a view of it, or an array that shares its memory.

    Parameters
    ----------
    like : Tensor
        A state of the run; where such states are small or not on the host nothing is kept.
    """

    def __init__(self, like: Tensor) -> None:
        large = like.device.type == "cpu" and like.nbytes >= _LARGE
        self._useful = large and _ALONE is not None and not torch.compiler.is_compiling()
        self._kept: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        """A copy of the run begins with no memory to spare."""
        copy = object.__new__(Memory)
        copy._useful, copy._kept = self._useful, []
        return copy

    def give(self, tensor: Tensor) -> None:
        """Hand over a tensor that the run has done with."""
        if self._useful:
            self._kept.append(tensor)
            if len(self._kept) > _KEPT:
                self._kept.pop(0)

    def take(self, like: Tensor) -> Tensor | None:
        """A tensor of the shape and dtype of `like` to be written; None where there is none, or a graph is recorded."""
        kept = self._kept
        if not kept or torch.is_grad_enabled():
            return None
        for place in range(len(kept)):
            if _holders(kept, place) == _ALONE and _fits(kept[place], like):
                return kept.pop(place)
        return None


def _fits(tensor: Tensor, like: Tensor) -> bool:
    return (
        tensor.shape == like.shape
        and tensor.dtype == like.dtype
        and tensor.stride() == like.stride()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
        and tensor.is_inference() == torch.is_inference_mode_enabled()
    )


def _holders(tensors: list[Tensor], place: int) -> tuple[int, int] | None:
    """References to the tensor and to its memory; None where torch does not count the second."""
    if _count_storage is None:
        return None
    return sys.getrefcount(tensors[place]), _count_storage(tensors[place].untyped_storage()._cdata)


_ALONE = _holders([torch.empty(0)], 0)
