"""Linear combinations of the tensors of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .table import Terms

_ONE = 1e-15  # rounding of two coefficients whose sum is 1


class Combiner:
    """Evaluates Σ coefficient·value for one device; array coefficients are moved there once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._arrays: dict[int, Tensor] = {}

    def __call__(self, terms: Terms, values: Mapping[int, Tensor], out: Tensor | None = None) -> Tensor:
        """A new tensor, or `out`; zeros for no terms. `values` holds tensors of one shape, `out` not among them."""
        if not terms:
            return torch.zeros_like(next(iter(values.values())))
        total, rest = self._start(terms, values, out)
        for value, c in rest:
            if isinstance(c, np.ndarray):
                total.addcmul_(values[value], self._array(c, total))
            else:
                total.add_(values[value], alpha=c)
        return total

    def _start(self, terms: Terms, values: Mapping[int, Tensor], out: Tensor | None) -> tuple[Tensor, Terms]:
        """The first term, or the first two in one operation where their coefficients allow it."""
        value, c = terms[0]
        x = values[value]
        if isinstance(c, np.ndarray):
            return torch.mul(x, self._array(c, x), out=out), terms[1:]
        other, d = terms[1] if len(terms) > 1 else (value, None)
        if isinstance(d, float):
            if c == 1.0:
                return torch.add(x, values[other], alpha=d, out=out), terms[2:]
            if len(terms) == 2 and abs(c + d - 1.0) < _ONE:
                return torch.lerp(x, values[other], d, out=out), ()
        return torch.mul(x, c, out=out), terms[1:]

    def _array(self, c: np.ndarray[Any, Any], like: Tensor) -> Tensor:
        key = id(c)
        if key not in self._arrays:
            check_fits(c, like.shape[1:])
            self._arrays[key] = torch.as_tensor(c, device=self.device)
        return self._arrays[key].to(like.dtype)


def check_fits(c: np.ndarray[Any, Any], shape: Sequence[int]) -> None:
    """Raise ValueError unless a coefficient for each coordinate belongs to samples of this shape."""
    if c.ndim > len(shape) or any(n not in (1, m) for n, m in zip(c.shape[::-1], tuple(shape)[::-1], strict=False)):
        raise ValueError(f"the table has coefficients for samples of shape {c.shape}, not {tuple(shape)}")


def affine(query: Tensor, output: Tensor, on_query: float, on_output: float, out: Tensor | None = None) -> Tensor:
    """on_query·query + on_output·output in as few passes over the memory as possible; `output` itself for (0, 1).

    The result is a new tensor, or else `out`.
    """
    if on_query == 0.0:
        return output if on_output == 1.0 else torch.mul(output, on_output, out=out)
    if on_query == 1.0:
        return torch.add(query, output, alpha=on_output, out=out)
    return torch.mul(query, on_query, out=out).add_(output, alpha=on_output)
