"""Rows as single kernels: everything between two network calls in one function that `torch.compile` fuses.

Calls of one layout (the same terms in the same places) share a compiled function; their coefficients are a row of one
small tensor that is copied to the device once. Noise is drawn inside. A run of many steps compiles a few functions:
one for the usual row and some for the first and last ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..keyed_noise import normals
from .calls import Call, Plan
from .passes import RAW

Results = tuple[Tensor, ...]


class Layout(NamedTuple):
    """Which places hold what; places count query, network output, other registers, draws, output, update targets.

    Attributes
    ----------
    draws : number of normals drawn
    output : 0 not stored, 1 a multiple of the network's output, 2 a combination of it and the query
    data : whether the data prediction is computed, as a combination of query and network output
    updates : for each the places of its terms
    results : places of the values to keep
    state : place of what is handed out
    """

    draws: int
    output: int
    data: bool
    updates: tuple[tuple[int, ...], ...]
    results: tuple[int, ...]
    state: int


class FusedCall(NamedTuple):
    """A call as a compiled function and the values it takes and gives."""

    layout: Layout
    inputs: tuple[int, ...]
    results: tuple[int, ...]
    draws: slice
    coefficients: tuple[float, ...]


class FusedPlan:
    """The calls of a plan as compiled functions.

    Parameters
    ----------
    plan : Plan
        Without a rule and without array coefficients, see `can_fuse`.
    """

    def __init__(self, plan: Plan) -> None:
        self.calls = list[FusedCall]()
        drawn = 0
        for call in plan.calls:
            self.calls.append(_fused(call, drawn))
            drawn += len(call.draws)
        width = max(len(call.coefficients) for call in self.calls)
        self._coefficients = np.zeros((len(self.calls), width))
        for row, fused in zip(self._coefficients, self.calls, strict=True):
            row[: len(fused.coefficients)] = fused.coefficients
        self._on: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, like: Tensor) -> Tensor:
        """Coefficients (calls, K) on the device of `like`; copied there once."""
        key = like.device, like.dtype
        if key not in self._on:
            self._on[key] = torch.from_numpy(self._coefficients).to(like.dtype).to(like.device)
        return self._on[key]

    def __call__(
        self, position: int, values: dict[int, Tensor], output: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Execute a call on the registers; returns what `Stepper.advance` does, in the dtype of `output`.

        The data prediction is None where it is undefined or a register that is kept.

        `keys` (draws, B) are those of all draws of the run, in the order of `Plan.draws`.
        """
        call = self.calls[position]
        registers = [values[v] for v in call.inputs]
        drawn = keys[call.draws] if keys is not None and call.layout.draws else None
        numbers = self.on(registers[0])[position, : len(call.coefficients)]
        kept, state, data = _compiled(call.layout)(numbers, output, registers, drawn)
        values.update(zip(call.results, kept, strict=True))
        return state, data


def can_fuse(plan: Plan) -> bool:
    """Whether a plan has scalars for coefficients and no rule for its data prediction."""
    return plan.rule is None and not plan.table.has_arrays


def _fused(call: Call, drawn: int) -> FusedCall:
    made = {draw.value for draw in call.draws} | {u.target for u in call.updates} | {call.output, RAW, call.query}
    read = dict.fromkeys(v for u in call.updates for v, _ in u.terms if v not in made)
    inputs = (call.query, *read)
    order = [call.query, RAW, *read, *(draw.value for draw in call.draws)]
    output = 0 if not call.stored else 2 if call.convert[0] else 1
    order += [call.output] * call.stored + [u.target for u in call.updates]
    places = {value: place for place, value in reversed(list(enumerate(order)))}
    computed = [call.output] * call.stored + [u.target for u in call.updates] + [draw.value for draw in call.draws]
    results = tuple(v for v in computed if v not in call.frees)
    weights: tuple[float, ...] | None = call.data
    if weights is None:  # the output value; nothing to compute where it is kept
        weights = () if call.output in results else tuple(call.scale * c for c in call.convert)
    updates = tuple(tuple(places[v] for v, _ in u.terms) for u in call.updates)
    layout = Layout(
        len(call.draws), output, len(weights) > 0, updates, tuple(places[v] for v in results), places[call.returns]
    )
    numbers = [*(call.convert if output else ()), *weights]
    numbers += [float(c) for u in call.updates for _, c in u.terms]
    return FusedCall(layout, inputs, results, slice(drawn, drawn + len(call.draws)), tuple(numbers))


@cache
def _compiled(layout: Layout) -> Callable[..., tuple[Results, Tensor, Tensor | None]]:
    def row(*tensors: Any) -> tuple[Results, Tensor, Tensor | None]:
        return _row(layout, *tensors)

    # the compiler limits the variants of one code object, so each layout has a code object of its own
    code = row.__code__.replace(co_name=f"row_{_compiled.cache_info().currsize}")
    return torch.compile(FunctionType(code, globals(), code.co_name, None, row.__closure__))


def _row(
    layout: Layout, coefficients: Tensor, output: Tensor, registers: Sequence[Tensor], keys: Tensor | None
) -> tuple[Results, Tensor, Tensor | None]:
    query = registers[0]
    raw = output.to(query.dtype)
    values = [query, raw, *registers[1:]]
    if keys is not None:
        values += [normals(key, query.shape[1:], query.dtype) for key in keys.unbind()]
    numbers = iter(coefficients.unbind())
    data = None
    if layout.output:
        on_query, on_output = next(numbers), next(numbers)
        values.append(on_query * query + on_output * raw if layout.output == 2 else on_output * raw)
    if layout.data:
        data = next(numbers) * query + next(numbers) * raw
    for places in layout.updates:
        first, *rest = places
        total = next(numbers) * values[first]
        for place in rest:
            total = total + next(numbers) * values[place]
        values.append(total)
    state = values[layout.state].to(output.dtype)
    return tuple(values[k] for k in layout.results), state, None if data is None else data.to(output.dtype)
