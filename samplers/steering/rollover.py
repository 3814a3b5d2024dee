"""Rollover Budget Forcing: greedy chains that hand the proposals they did not need to their next step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..border import Model
from ..guidance import Guidance
from ..guidance.protocol import row_step
from ..keyed_noise import START_NOISE, keyed_normal
from ..loop import run
from ..run_state import Hook, NoiseSource, RunState
from ..smc import Chunked
from ..table import Row, Table, Update
from .data_reward import DataReward, as_data_reward

HELD = "held"
_STATE, _OUTPUT, _NOISE, _MOVED, _CHILD = 0, 2, 3, 4, 5


class Child(NamedTuple):
    """A state, the data predicted there, and its reward."""

    state: Tensor
    data: Tensor
    reward: float


@dataclass
class Chain:
    """Bookkeeping of one chain: when a child is accepted, and how many proposals a step may use.

    Attributes
    ----------
    quota0 : int
        Q0, the proposals of a step without rollover.
    last_step : int
        S − 2, the parent that is never left.
    best : float
        Best reward accepted by rollover so far.
    step, quota, count : int
        k, Q and c of the method.
    """

    quota0: int
    last_step: int
    best: float
    step: int = 0
    quota: int = 0
    count: int = 1
    step_best: float = -torch.inf
    stored: Child | None = None

    def __post_init__(self) -> None:
        self.quota = self.quota0

    def offer(self, child: Child) -> Child | None:
        """One proposal; returns the child that becomes the next parent, or None where the parent stays."""
        accepted, reward = None, child.reward
        if self.stored is None or reward > self.step_best:
            self.step_best, self.stored = reward, child
        may_move = self.step < self.last_step
        if reward > self.best:
            self.best = reward
            if may_move:
                accepted, self.quota = child, self.quota0 + (self.quota - self.count)
        elif may_move and self.count % self.quota == 0:
            accepted, self.quota = self.stored, self.quota0
        if accepted is not None:
            self.count, self.step_best, self.stored = 0, -torch.inf, None
            self.step += 1
        self.count += 1
        return accepted


@dataclass(frozen=True)
class RolloverResult:
    """Outcome of Rollover Budget Forcing.

    Attributes
    ----------
    sample : Tensor
        The best of all data predictions, shaped as one sample; it was not simulated to the end.
    reward : float
    evaluations : int
        Network evaluations of single samples, below the budget.
    reward_calls : int
    steps : list of int
        The step each chain has reached.
    rounds : int
        Proposals of each chain.
    accepted : list of (round, chain, step)
    """

    sample: Tensor
    reward: float
    evaluations: int
    reward_calls: int
    steps: list[int]
    rounds: int
    accepted: list[tuple[int, int, int]] = field(default_factory=list)


def first_quota(budget: int, steps: int, chains: int, candidates: int) -> int:
    """Q0 = ⌊(K − B·n0)/(B·S)⌋ proposals of a step.

    Raises
    ------
    ValueError
        Numbers below 1, fewer than 3 steps, or a budget that leaves no proposal for a step.
    """
    for name, value in (("chains", chains), ("candidates", candidates)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is not possible; it must be a whole number, at least 1")
    if steps < 3:
        raise ValueError(f"a table of {steps} steps is too short; at least 3 are needed")
    quota = (budget - chains * candidates) // (chains * steps)
    if quota < 1:
        least = chains * (candidates + steps)
        raise ValueError(f"budget={budget!r} leaves no proposal for each step; at least {least} are needed")
    return quota


def rollover_budget_forcing(
    table: Table,
    model: Model,
    reward: DataReward | Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    budget: int = 500,
    chains: int = 2,
    candidates: int = 25,
    prediction: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    chunk_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> RolloverResult:
    """Rollover Budget Forcing (Kim et al. 2025, arXiv:2503.19385): one sample of high reward for a budget.

    Each chain begins at the best of `candidates` noises. It proposes children one table step away, whose data
    predictions are rewarded; the first that beats the chain's best is accepted and its unused proposals pass to the
    next step, else the best of the quota is. Before the last step it proposes until the budget is spent. Returned is
    the best data prediction ever rewarded; the published rule, the best child of the parents at the end, may give one
    worse than it has seen. Greedy: no target law is kept.

    Parameters
    ----------
    table : Table
        S steps of one call and one draw each, all but the last of which are used: `noisy_flow_table(path, 10)` for a
        flow network taken to the VP path by `as_diffusion`, or ddim with eta=1.
    model : callable (x, t, **model_kwargs) -> output
    reward : DataReward, or a function of data (B, ...) -> (B,)
    shape : of one sample
    budget, chains, candidates : K, B and n0; published 500, 2 and 25
    model_kwargs : mapping
        Tensors have length 1 and serve every chain.
    prediction, guidance, seed : as in `run`; the budget counts one evaluation for all branches of a guidance
    chunk_size, dtype, device : as in `steered_sample`

    Raises
    ------
    ValueError
        Before any call: a table that is not one random step in each row, or a budget that is too small.
    """
    quota = first_quota(budget, len(table.rows), chains, candidates)
    reward = as_data_reward(reward)
    moves = [_proposal(table, k) for k in range(len(table.rows) - 1)]
    network = model if chunk_size is None else Chunked(model, chunk_size)
    given: dict[str, Any] = {"guidance": guidance, "seed": seed}
    given["prediction"] = prediction or getattr(model, "prediction", None) or "data"

    def evaluate(part: Table, x: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        data = run(part, network, x, model_kwargs=_repeated(model_kwargs, len(x)), **given, **how)
        assert isinstance(data, Tensor)
        return data, reward.at(data, part.end)

    before = reward.calls
    slots = torch.arange(chains * candidates, device=device)
    x = keyed_normal(shape, seed, slots, START_NOISE, dtype=dtype, device=device) * table.start.noise
    data, found = evaluate(_first_call(table), x)
    best = found.reshape(chains, candidates).max(1)
    chosen = (best.indices + torch.arange(chains, device=device) * candidates).tolist()
    parents = [Child(x[i], data[i], float(found[i])) for i in chosen]
    final = max(parents, key=_rewarded)
    ways = [Chain(quota, len(table.rows) - 2, parent.reward) for parent in parents]
    spent, rounds, accepted = len(slots), 0, list[tuple[int, int, int]]()
    while spent + chains < budget:
        children: dict[int, Child] = {}
        for step in {way.step for way in ways}:  # one run for the chains that stand at the same step
            here = [b for b, way in enumerate(ways) if way.step == step]
            seen, held = _Seen(), torch.stack([parents[b].data for b in here])
            states = torch.stack([parents[b].state for b in here])
            how = {"noise": _source(seed, here, rounds), "hooks": [seen], "anchors": {HELD: held}}
            data, found = evaluate(moves[step], states, **how)
            children.update(
                (b, Child(*three)) for b, *three in zip(here, seen.state, data, found.tolist(), strict=True)
            )
        final = max((final, *children.values()), key=_rewarded)
        for b, way in enumerate(ways):
            taken = way.offer(children[b])
            if taken is not None:
                parents[b] = taken
                accepted.append((rounds, b, way.step))
        spent, rounds = spent + chains, rounds + 1
    calls, steps = reward.calls - before, [way.step for way in ways]
    return RolloverResult(final.data, final.reward, spent, calls, steps, rounds, accepted)


def _rewarded(child: Child) -> float:
    return child.reward


class _Seen(Hook):
    """The state that the network was called at last."""

    state: Tensor

    def before_model(self, run: RunState, query: Tensor) -> None:
        """Keep it."""
        self.state = query


def _first_call(table: Table) -> Table:
    """The first call alone: the data predicted at the start."""
    return _part((Row(table.start, "data", _STATE, 1, None, (), ()),), table, 0, 1)


def _proposal(table: Table, k: int) -> Table:
    """The step of row k from a state and its data prediction, which is given, and the call at what it ends in.

    Raises
    ------
    ValueError
        The row is not one random step of its state and output.
    """
    step, row = row_step(table, k), table.rows[k]
    if {v for v, _ in row.updates[0].terms} - {row.query, row.output, step.noise_value}:
        raise ValueError(f"row {k} of {table.method!r} uses outputs of earlier rows, which chains do not keep")
    if step.noise_value is None:
        raise ValueError(f"row {k} of {table.method!r} draws no noise, so that every proposal would be the same")
    terms = ((_STATE, step.carry), (_OUTPUT, step.on_data), (_NOISE, step.fresh))
    move = Row(row.level, "data", _STATE, _OUTPUT, ((1, 1.0),), (_NOISE,), (Update(_MOVED, terms),))
    call = Row(table.rows[k + 1].level, "data", _MOVED, _CHILD, None, (), ())
    return _part((move, call), table, k, _CHILD, (HELD,))


def _part(rows: tuple[Row, ...], table: Table, k: int, result: int, anchors: tuple[str, ...] = ()) -> Table:
    frame = "none: a part of a table, from one data prediction to the next"
    return Table(rows, rows[0].level, rows[-1].level, result, anchors, frame, frame, method=f"{table.method}[{k}]")


def _source(seed: int, chains: list[int], proposal: int) -> NoiseSource:
    """Noise keyed by the chain and the number of the proposal."""

    def draw(row: int, slot: int, like: Tensor) -> Tensor:
        return keyed_normal(like.shape[1:], seed, chains, proposal, dtype=like.dtype, device=like.device)

    return draw


def _repeated(kwargs: Mapping[str, Any] | None, batch: int) -> dict[str, Any]:
    """Conditions of one sample for a batch of them."""
    return {
        key: value.expand(batch, *value.shape[1:]) if isinstance(value, Tensor) and value.shape[:1] == (1,) else value
        for key, value in (kwargs or {}).items()
    }
