"""Memory of past registers, written again by the run that made them.

On the host every large tensor is mapped into memory anew, which costs several times what writing it does. An
accelerator's allocator keeps memory by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LARGE = 1 << 17  # bytes; smaller ones the allocator has at hand
_KEPT = 4


class Memory:
    """Tensors that only the run has ever held, for those that come next."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        """A copy of the run begins with no memory to spare."""
        return Memory()

    def give(self, tensor: Tensor) -> None:
        """Hand over a tensor that nobody else has seen and the run has done with."""
        if len(self._kept) < _KEPT:
            self._kept.append(tensor)

    def take(self, like: Tensor) -> Tensor | None:
        """A tensor of the shape and dtype of `like` to write; None where there is none or derivatives are taken."""
        if not self._kept or torch.is_grad_enabled() or forward_ad._current_level >= 0:
            return None
        tensor = self._kept.pop()
        fits = tensor.shape == like.shape and tensor.dtype == like.dtype and tensor.stride() == like.stride()
        return tensor if fits and tensor.is_inference() == torch.is_inference_mode_enabled() else None


def memory_for(state: Tensor) -> Memory | None:
    """The memory of a run with states like this one; None where they are small or not on the host."""
    useful = state.device.type == "cpu" and state.nbytes >= _LARGE and not torch.compiler.is_compiling()
    return Memory() if useful else None
