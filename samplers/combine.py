"""Linear combinations of the tensors of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bases import basis_named
from .table import Table, Terms

Evaluator = Callable[[Mapping[int, Tensor], Tensor | None], Tensor]
"""A sum as a function of the values and the tensor to write, or None for a new one."""

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
        return self.evaluator(terms)(values, out)

    def evaluator(self, terms: Terms) -> Evaluator:
        """The sum as a function of (values, out), for terms that are evaluated again and again."""
        if not terms:
            return _zeros
        if len(numbers_of(terms)) < len(terms):
            return partial(self._sum if self._basis is None else self._filtered, terms)
        (x, a), *rest = numbers_of(terms)
        if rest and a == 1.0:
            return partial(_added, x, *rest[0], rest[1:])
        if len(rest) == 1 and abs(a + rest[0][1] - 1.0) < _ONE:
            return partial(_interpolated, x, *rest[0])
        return partial(_scaled, x, a if self._lasting is None else self._number(a), rest)

    def _sum(self, terms: Terms, values: Mapping[int, Tensor], out: Tensor | None) -> Tensor:
        """With coefficients for each coordinate among them."""
        (first, a), *rest = terms
        x = values[first]
        total = _times(x, self._array(a, x) if isinstance(a, np.ndarray) else a, out)
        for value, c in rest:
            if isinstance(c, np.ndarray):
                total.addcmul_(values[value], self._array(c, total))
            else:
                total.add_(values[value], alpha=c)
        return total

    def _filtered(self, terms: Terms, values: Mapping[int, Tensor], out: Tensor | None) -> Tensor:
        """Array coefficients as filters: one transform of each value, one back."""
        assert self._basis is not None
        filters = tuple(term for term in terms if isinstance(term[1], np.ndarray))
        plain = numbers_of(terms)
        inside = self._sum(filters, {value: self._basis.to(values[value]) for value, _ in filters}, None)
        if plain:
            return self(plain, values, out).add_(self._basis.back(inside))
        filtered = self._basis.back(inside)
        return filtered if out is None else out.copy_(filtered)

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


def numbers_of(terms: Terms) -> tuple[tuple[int, float], ...]:
    """The terms whose coefficients are numbers."""
    return tuple((value, c) for value, c in terms if not isinstance(c, np.ndarray))


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
    if on_query == 1.0:
        return _plus(query, output, on_output, out)
    if on_query == 0.0:
        return output if on_output == 1.0 else _times(output, on_output, out)
    return _times(query, on_query, out).add_(output, alpha=on_output)


def _zeros(values: Mapping[int, Tensor], out: Tensor | None) -> Tensor:
    found = torch.zeros_like(next(iter(values.values())))
    return found if out is None else out.copy_(found)


def _added(
    x: int, y: int, c: float, rest: Sequence[tuple[int, float]], values: Mapping[int, Tensor], out: Tensor | None
) -> Tensor:
    """Of x, c·y and the rest."""
    total = _plus(values[x], values[y], c, out)
    for value, d in rest:
        total.add_(values[value], alpha=d)
    return total


def _interpolated(x: int, y: int, c: float, values: Mapping[int, Tensor], out: Tensor | None) -> Tensor:
    """Of (1 - c)·x and c·y."""
    return torch.lerp(values[x], values[y], c, out=out)


def _scaled(
    x: int, c: Tensor | float, rest: Sequence[tuple[int, float]], values: Mapping[int, Tensor], out: Tensor | None
) -> Tensor:
    """Of c·x and the rest."""
    total = _times(values[x], c, out)
    for value, d in rest:
        total.add_(values[value], alpha=d)
    return total


# Leaving `out` out takes a tenth less time than None for it.


def _times(x: Tensor, c: Tensor | float, out: Tensor | None) -> Tensor:
    return torch.mul(x, c) if out is None else torch.mul(x, c, out=out)


def _plus(x: Tensor, y: Tensor, c: float, out: Tensor | None) -> Tensor:
    return torch.add(x, y, alpha=c) if out is None else torch.add(x, y, alpha=c, out=out)
