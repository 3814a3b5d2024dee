"""What a guidance is, and what it may know about the evaluation it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pathline.interpolants import coefficients

from ..nodes import Level
from ..run_state import Hook
from ..table import Table

Network = Callable[..., Tensor]


class Guidance(Protocol):
    """Anything that turns a network call into a guided output; one such call counts as one evaluation.

    A guidance that must know where it acts has a method `at(network, x, t, kwargs, place)` besides, which runs call
    instead, with the `Place` of the evaluation. One that must look at the state between rows is also a `Hook`.
    """

    def __call__(self, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Return the guided output, of the shape and prediction type of the network's."""
        ...


@dataclass
class Place:
    """Where in a run an evaluation stands.

    Attributes
    ----------
    level : Level
        Signal, noise, rates and label of the query.
    prediction : str
        What the network returns, and what a guidance must return.
    memory : dict of name -> Tensor (B, ...)
        What guidances keep for each sample from one evaluation to the next. Every run and every chunk begins with an
        empty one, and a resampler gathers it with the state (it is `RunState.extras`).
    row : int or None
        Row of the table; None for adaptive methods and pipelines.
    table : Table or None
    step, steps : int or None
        Number of the step (0 is the first) and how many there are; None for adaptive methods.
    first_stage : bool
        True on the first call of a step, and where steps are not known.
    anchored : Tensor or None
        On a bridge anchor·source: what the state holds besides data and noise.
    forwards : int
        Network forward passes of one batch that this evaluation has cost.
    """

    level: Level
    prediction: str
    memory: dict[str, Tensor] = field(default_factory=dict)
    row: int | None = None
    table: Table | None = None
    step: int | None = None
    steps: int | None = None
    first_stage: bool = True
    anchored: Tensor | None = None
    forwards: int = 0

    @property
    def sigma(self) -> float:
        """Noise over signal, infinite at pure noise."""
        return self.level.noise / self.level.signal if self.level.signal else float("inf")

    def convert(self, x: Tensor, output: Tensor, source: str, target: str) -> Tensor:
        """An output at the state `x` as another prediction, in float32 or wider.

        Raises
        ------
        ValueError
            `source` does not determine `target` at this level.
        """
        on_x, on_output = coefficients(*self.level[1:5], source, target)
        wide = output if output.element_size() >= 4 else output.float()
        if on_x == 0.0:
            return wide if on_output == 1.0 else wide * on_output
        state = x if self.anchored is None else x - self.anchored
        return state.to(wide.dtype) * on_x + wide * on_output

    def to_data(self, x: Tensor, output: Tensor) -> Tensor:
        """A network output as a data prediction; errors as `convert`."""
        return self.convert(x, output, self.prediction, "data")

    def from_data(self, x: Tensor, data: Tensor) -> Tensor:
        """A data prediction as the network's; errors as `convert`."""
        return self.convert(x, data, "data", self.prediction)

    def add_score(self, output: Tensor, score: Tensor) -> Tensor:
        """The output of a network whose score is greater by `score`.

        At signal 0, where the state says nothing about the data and a prediction nothing about the score, the output
        itself.
        """
        try:
            _, factor = coefficients(*self.level[1:5], "score", self.prediction)
        except ValueError:
            if self.level.signal == 0.0:
                return output
            raise
        return output + (factor * score).to(output.dtype)

    def counted(self, network: Network) -> Network:
        """The network, with its forward passes added to `forwards`."""

        def call(x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
            self.forwards += 1
            return network(x, t, **kwargs)

        return call


def known(place: Place | None, name: str) -> Place:
    """The place of an evaluation.

    Raises
    ------
    ValueError
        The guidance is called by something that does not say where.
    """
    if place is None:
        raise ValueError(f"{name} must know the level it acts at; use it as guidance=... of sample or run")
    return place


def guided_output(
    guidance: Any, network: Network, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place
) -> Tensor:
    """What a guidance makes of an evaluation, whether or not it asks for the place."""
    at = getattr(guidance, "at", None)
    result: Tensor = guidance(network, x, t, kwargs) if at is None else at(network, x, t, kwargs, place)
    return result


class Part:
    """Base of guidances around another one, which they hold as `inner`."""

    @property
    def summary(self) -> str:
        """The whole composition in words, as fitted tables record it."""
        return repr(self)


def parts_of(guidance: Any) -> Iterator[Any]:
    """A guidance and what it holds inside, from the outside in."""
    while guidance is not None:
        yield guidance
        guidance = getattr(guidance, "inner", None)


def guidance_hooks(guidance: Any) -> tuple[Hook, ...]:
    """The parts of a guidance that look at the state between rows."""
    return tuple(part for part in parts_of(guidance) if isinstance(part, Hook))


def check_guidance(guidance: Any, table: Table | None) -> None:
    """Let every part of a guidance refuse, by a ValueError, a table it cannot act on; None for adaptive methods."""
    for part in parts_of(guidance):
        if (check := getattr(part, "check", None)) is not None:
            check(table)


@dataclass(frozen=True)
class StepMap:
    """Which step every row of a table belongs to.

    Rows belong to steps by their levels: the last of several rows at a node begins the step from there, those before it
    end the one before (Heun's second stage), and rows between two nodes are inner stages. A row whose level lies before
    the step's own (churn) belongs to the step begun.
    """

    table: Table

    @cached_property
    def _steps(self) -> list[int]:
        times = np.asarray(self.table.nodes.get("time", ()), dtype=np.float64)
        rows = self.table.rows
        if len(times) < 2:
            return list(range(len(rows)))
        sign = 1.0 if times[-1] >= times[0] else -1.0
        near = 1e-9 * float(np.abs(times).max())
        labels = sign * np.array([row.level.time for row in rows])
        passed = np.searchsorted(sign * times[1:], labels + near, side="right")  # nodes begun since the first
        at_node = np.abs(sign * times[passed] - labels) <= near
        again = np.append(np.abs(np.diff(labels)) <= near, False)
        steps = np.minimum(passed - (at_node & again & (passed > 0)), len(times) - 2)
        return np.maximum.accumulate(steps).tolist() if len(steps) else []

    @property
    def count(self) -> int:
        """Number of steps."""
        return max(len(self.table.nodes.get("time", ())) - 1, 1) if self.table.nodes else len(self.table.rows)

    def step(self, row: int) -> int:
        """Number of the step that `row` belongs to."""
        return self._steps[row]

    def first_stage(self, row: int) -> bool:
        """Whether no call before `row` belongs to its step."""
        before = next((k for k in range(row - 1, -1, -1) if self.table.rows[k].calls_network), None)
        return before is None or self._steps[before] != self._steps[row]


@dataclass(frozen=True)
class RowStep:
    """The step x' = carry·x + on_data·D + … + fresh·z that a row with one call takes.

    Attributes
    ----------
    target : int
        The value x' that it computes.
    carry, on_data : float
        Coefficients of the query and of the row's output, as a data prediction.
    fresh : float
        Standard deviation of the noise that the row draws; 0 where it draws none.
    noise_value : int or None
    """

    target: int
    carry: float
    on_data: float
    fresh: float
    noise_value: int | None


def row_step(table: Table, index: int) -> RowStep:
    """The step of a row.

    Raises
    ------
    ValueError
        The row is not one step from its query: a stage, a correction, array coefficients or several noises.
    """
    row = table.rows[index]
    if row.query is None or row.output is None or len(row.updates) != 1:
        raise _not_a_step(table, index)
    update, used = row.updates[0], [z for z in row.noises if z >= 0]
    terms = dict(update.terms)
    following = next((r.query for r in table.rows[index + 1 :] if r.query is not None), table.result)
    plain = all(isinstance(c, float) for c in terms.values())
    if not plain or len(used) > 1 or following != update.target or row.output not in terms:
        raise _not_a_step(table, index)
    states = {table_row.query for table_row in table.rows} - {row.query, update.target}
    if states & terms.keys():
        raise _not_a_step(table, index)
    on_x, on_data = coefficients(*row.level[1:5], "data", row.form)
    stored = float(terms[row.output])
    carry = float(terms.get(row.query, 0.0)) + stored * on_x
    fresh = abs(float(terms[used[0]])) if used else 0.0
    return RowStep(update.target, carry, stored * on_data, fresh, used[0] if used else None)


def _not_a_step(table: Table, index: int) -> ValueError:
    return ValueError(
        f"row {index} of {table.method!r} is not one whole step from its call (inner stages, corrections and "
        "coefficients for each coordinate are not); use a method with one call per step, such as ddim, "
        "euler-ancestral, dpm++ or dpm++-sde"
    )
