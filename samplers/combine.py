"""Linear combinations of the tensors of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bases import basis_named
from .table import Table, Terms

_ONE = 1e-15  # rounding of two coefficients whose sum is 1


class Combiner:
    """Evaluates Σ coefficient·value for one device; array coefficients are moved there once.

    Parameters
    ----------
    device : torch.device
    basis : str, optional
        Name of the basis in which array coefficients act: Σ_j c_j·x_j is then back(Σ_j c_j ⊙ to(x_j)). By default they
        multiply the values themselves.
    lasting : torch.dtype, optional
        Serves many runs of one table on values of this dtype, so that it pays to keep numbers as tensors: on the host a
        product with a tensor of no dimensions takes half the time of one with a float.
    """

    def __init__(self, device: torch.device, basis: str | None = None, *, lasting: torch.dtype | None = None) -> None:
        self.device = device
        self._basis = None if basis is None else basis_named(basis)
        self._arrays: dict[int, tuple[np.ndarray[Any, Any], Tensor]] = {}
        self._numbers: dict[float, Tensor] = {}
        self._lasting = lasting if device.type == "cpu" else None

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays, which other processes know under other ids."""
        return {**self.__dict__, "_arrays": {}}

    def __call__(self, terms: Terms, values: Mapping[int, Tensor], out: Tensor | None = None) -> Tensor:
        """A new tensor, or `out`; zeros for no terms. `values` holds tensors of one shape, `out` not among them."""
        if not terms:
            return torch.zeros_like(next(iter(values.values())))
        if self._basis is not None and any(isinstance(c, np.ndarray) for _, c in terms):
            return self._filtered(terms, values, out)
        return self._sum(terms, values, out)

    def _sum(self, terms: Terms, values: Mapping[int, Tensor], out: Tensor | None) -> Tensor:
        total, used = self._start(terms, values, out)
        for value, c in terms[used:]:
            if isinstance(c, np.ndarray):
                total.addcmul_(values[value], self._array(c, total))
            else:
                total.add_(values[value], alpha=c)
        return total

    def _filtered(self, terms: Terms, values: Mapping[int, Tensor], out: Tensor | None) -> Tensor:
        """Array coefficients as filters: one transform of each value, one back."""
        assert self._basis is not None
        filters = tuple(term for term in terms if isinstance(term[1], np.ndarray))
        plain = tuple(term for term in terms if not isinstance(term[1], np.ndarray))
        inside = self._sum(filters, {value: self._basis.to(values[value]) for value, _ in filters}, None)
        if plain:
            return self._sum(plain, values, out).add_(self._basis.back(inside))
        filtered = self._basis.back(inside)
        return filtered if out is None else out.copy_(filtered)

    def _start(self, terms: Terms, values: Mapping[int, Tensor], out: Tensor | None) -> tuple[Tensor, int]:
        """The first term, or the first two in one operation where their coefficients allow it; and their number."""
        value, c = terms[0]
        x = values[value]
        if isinstance(c, np.ndarray):
            return _times(x, self._array(c, x), out), 1
        if len(terms) > 1 and isinstance(d := terms[1][1], float):
            if c == 1.0:
                return _plus(x, values[terms[1][0]], d, out), 2
            if len(terms) == 2 and abs(c + d - 1.0) < _ONE:
                return torch.lerp(x, values[terms[1][0]], d, out=out), 2
        return _times(x, c if self._lasting is None else self._number(c), out), 1

    def _number(self, c: float) -> Tensor:
        found = self._numbers.get(c)
        if found is None:
            with torch.inference_mode(False):  # so that autograd may keep it
                found = self._numbers[c] = torch.tensor(c, dtype=self._lasting, device=self.device)
        return found

    def _array(self, c: np.ndarray[Any, Any], like: Tensor) -> Tensor:
        if id(c) not in self._arrays:
            check_fits(c, like.shape[1:])
            with torch.inference_mode(False):
                self._arrays[id(c)] = c, torch.as_tensor(c, device=self.device)  # kept, so that its id stays its own
        return self._arrays[id(c)][1].to(like.dtype)


def check_table_fits(table: Table, shape: Sequence[int]) -> None:
    """Raise ValueError unless the array coefficients of a table belong to samples of this shape."""
    if not table.has_arrays:
        return
    if table.basis is not None:
        try:
            basis_named(table.basis).check(tuple(shape))
        except ValueError as error:
            raise ValueError(f"table {table.method!r} has coefficients in the {table.basis} basis: {error}") from None
    for _, c in table.coefficients():
        if isinstance(c, np.ndarray):
            check_fits(c, shape)


def check_fits(c: np.ndarray[Any, Any], shape: Sequence[int]) -> None:
    """Raise ValueError unless a coefficient for each coordinate belongs to samples of this shape."""
    if c.ndim > len(shape) or any(n not in (1, m) for n, m in zip(c.shape[::-1], tuple(shape)[::-1], strict=False)):
        raise ValueError(f"the table has coefficients for samples of shape {c.shape}, not {tuple(shape)}")


def affine(query: Tensor, output: Tensor, on_query: float, on_output: float, out: Tensor | None = None) -> Tensor:
    """on_query·query + on_output·output in as few passes over the memory as possible; `output` itself for (0, 1).

    The result is a new tensor, or else `out`.
    """
    if on_query == 0.0:
        return output if on_output == 1.0 else _times(output, on_output, out)
    if on_query == 1.0:
        return _plus(query, output, on_output, out)
    return _times(query, on_query, out).add_(output, alpha=on_output)


# Leaving `out` out takes a tenth less time than None for it.


def _times(x: Tensor, c: Tensor | float, out: Tensor | None) -> Tensor:
    return torch.mul(x, c) if out is None else torch.mul(x, c, out=out)


def _plus(x: Tensor, y: Tensor, c: float, out: Tensor | None) -> Tensor:
    return torch.add(x, y, alpha=c) if out is None else torch.add(x, y, alpha=c, out=out)
