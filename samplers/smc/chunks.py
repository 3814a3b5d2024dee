"""Networks evaluated in parts, so that memory is bounded while weights see every particle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Chunked:
    """A network that is given at most `size` samples at once; everything else of it stays in reach.

    Parameters
    ----------
    network : callable (x, t, **kwargs) -> output
    size : int ≥ 1

    Raises
    ------
    ValueError
        The size is not a whole number of at least 1.
    """

    def __init__(self, network: Callable[..., Tensor], size: int) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size={size!r} is not possible; it must be a whole number, at least 1")
        self.network = network
        self.size = size

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Output for the whole batch; tensors of the batch's length among kwargs are split along."""
        if len(x) <= self.size:
            return self.network(x, t, **kwargs)

        def part(value: Any, start: int) -> Any:
            own = isinstance(value, Tensor) and value.shape[:1] == (len(x),)
            return value[start : start + self.size] if own else value

        return torch.cat(
            [
                self.network(part(x, i), part(t, i), **{key: part(value, i) for key, value in kwargs.items()})
                for i in range(0, len(x), self.size)
            ]
        )

    def __getattr__(self, name: str) -> Any:
        if name == "network":  # not set yet: a copy being made
            raise AttributeError(name)
        return getattr(self.network, name)
