"""The state of one run of a scheduler: registers, position, what the pipeline was handed, noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..combine import Combiner, affine
from ..keyed_noise import draw_normals, own_keys, seed_of
from ..table import Update
from .calls import Call, Plan
from .fused import FusedPlan
from .passes import RAW

Generators = torch.Generator | Sequence[torch.Generator] | None


class StepNoise:
    """Keyed normals of one run.

    Parameters
    ----------
    seed : int or None
        Used unless the pipeline passes generators; None draws one from torch's default generator.
    offset : int
        Global index of the first sample of the batch.
    """

    def __init__(self, seed: int | None, offset: int) -> None:
        self.seed, self.offset = seed, offset
        self._seeds: list[int] | None = None
        self._own: Tensor | None = None

    def __call__(self, row: int, slot: int, like: Tensor, generator: Generators) -> Tensor:
        """Standard normals shaped as `like`; the seeds are settled at the first draw of a run.

        Raises
        ------
        ValueError
            A list of generators whose length is not the batch size.
        """
        seeds, own = self.settled(generator, len(like)), self.own(generator, like)
        shape, dtype = like.shape[1:], like.dtype
        if len(seeds) == 1:
            return draw_normals(own, shape, seeds[0], row, slot, dtype)
        return torch.cat([draw_normals(own[b : b + 1], shape, seed, row, slot, dtype) for b, seed in enumerate(seeds)])

    def own(self, generator: Generators, like: Tensor) -> Tensor:
        """`own_keys` (B,) of the samples: with a seed for each of them, every one is the first of its seed."""
        if self._own is None or len(self._own) != len(like):
            index = torch.arange(self.offset, self.offset + len(like), device=like.device)
            alone = len(self.settled(generator, len(like))) > 1
            self._own = own_keys(torch.zeros_like(index) if alone else index)
        return self._own

    def settled(self, generator: Generators, batch: int) -> list[int]:
        """The seeds of this run, one or one for each sample; errors as in a draw."""
        if self._seeds is None:
            self._seeds = self._seeds_of(generator, batch)
        return self._seeds

    def _seeds_of(self, generator: Generators, batch: int) -> list[int]:
        if generator is None:
            # from torch's own generator on the host, so that torch.manual_seed fixes the run as in stock schedulers
            return [seed_of(torch.default_generator) if self.seed is None else self.seed]
        if isinstance(generator, torch.Generator):
            return [seed_of(generator)]
        if len(generator) not in (1, batch):
            raise ValueError(f"{len(generator)} generators were given for a batch of {batch}; one per image is needed")
        return [seed_of(g) for g in generator]


class Stepper:
    """One run of a plan, one network call at a time.

    Parameters
    ----------
    plan : Plan
    index : int
        Number of its first call among the scheduler's timesteps.
    noise : StepNoise
    fused : FusedPlan, optional
        Executes the calls as compiled functions.

    Attributes
    ----------
    values : dict of value number -> Tensor
        Registers alive, in float32 or wider.
    index : int
        Number of the next call among the scheduler's timesteps.
    """

    def __init__(self, plan: Plan, index: int, noise: StepNoise, fused: FusedPlan | None = None) -> None:
        self.plan, self.noise = plan, noise
        self.index, self._position = index, 0
        self.values: dict[int, Tensor] = {}
        self._returned: Tensor | None = None  # what the pipeline holds; the register itself unless it was rounded
        self._rounded = False
        self._version: int | None = None
        self._combine: Combiner | None = None
        self._idle: list[int] = []  # values that nothing reads any more
        self._fused = fused
        self._keys: Tensor | None = None

    @property
    def finished(self) -> bool:
        """True after the last call."""
        return self._position == len(self.plan.calls)

    @property
    def next_query(self) -> int:
        """The value that the network is called at next."""
        return self.plan.calls[self._position].query

    def lead(self, sample: Tensor) -> Tensor:
        """The state of the first call from the initial one, where the table's first rows make no call."""
        values = self._initial(sample, torch.promote_types(sample.dtype, torch.float32))
        _update(self.plan.lead, values, Combiner(sample.device))
        return values[self.next_query].to(sample.dtype)

    def _initial(self, sample: Tensor, wide: torch.dtype) -> dict[int, Tensor]:
        """Value 0 is the start; the only anchor that tables of a plan can have is a constant 1."""
        ones = {1: torch.ones_like(sample, dtype=wide)} if self.plan.table.anchors else {}
        return {0: sample.to(wide), **ones}

    def advance(self, output: Tensor, sample: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor | None]:
        """Take a network output at `sample`; returns the next state to call the network at, and the data prediction.

        Both have the dtype of `output`. `sample` should be what the last call returned; where the pipeline changed
        it, the change is added to the state. A rule of the plan (clipping, thresholding) is applied to the data
        prediction before anything is stored; what a row stores as noise or velocity is computed again from the
        result, so that it agrees with the state, see `samplers.thresholding`.
        """
        call = self.begin(output, sample)
        if self._fused is not None:
            return self.end(call, *self._execute_fused(call, output, generator))
        return self.end(call, *self.rounded(call, self.execute(call, output, generator), output.dtype))

    def begin(self, output: Tensor, sample: Tensor) -> Call:
        """Take over what the pipeline made of the state; returns the call that is due."""
        call = self.plan.calls[self._position]
        if self._combine is None:
            self._open(output, sample)
        elif sample is not self._returned or (self._rounded and self._touched(sample)):
            self._fold(sample, call.query)
        return call

    def end(self, call: Call, state: Tensor, data: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Go on to the next call, with `state` in the pipeline's hands."""
        self._rounded = state is not self.values[call.returns]
        if self._rounded:
            self._version = changes_of(state)
        self._returned = state
        self._position += 1
        self.index += 1
        return state, data

    def rounded(self, call: Call, data: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The state that `call` has made, and its data prediction, in the dtype of the network."""
        state = self.values[call.returns]
        if state.dtype == dtype:
            return state, data
        return state.to(dtype), None if data is None else data.to(dtype)

    def execute(self, call: Call, output: Tensor, generator: Generators) -> Tensor | None:
        """The call on the registers, one element-wise operation after another; returns the data prediction."""
        values, combine, rule, idle = self.values, self._combine, self.plan.rule, self._idle
        assert combine is not None
        query = values[call.query]
        raw = output if output.dtype == query.dtype else output.to(query.dtype)
        data = None
        if rule is not None and call.data is not None:
            raw = data = rule(affine(query, raw, *call.data))
        values[RAW] = raw
        if call.stored:
            _release(values, idle)
            stored = affine(query, raw, *call.convert)
            # a compiled network may write its next output over this one
            values[call.output] = stored.clone() if stored is output else stored
        if rule is None:
            data = values[call.output] if call.data is None else affine(query, raw, *call.data) if call.data else None
        for value, row, slot in call.draws:
            values[value] = self.noise(row, slot, query, generator)
        for target, terms in call.updates:
            _release(values, idle)
            values[target] = combine(terms, values)
        for value in (RAW, *idle):
            values.pop(value, None)
        self._idle = list(call.frees)
        return data

    def _execute_fused(self, call: Call, output: Tensor, generator: Generators) -> tuple[Tensor, Tensor | None]:
        fused, values = self._fused, self.values
        assert fused is not None
        query = values[call.query]
        if self._keys is None and call.draws:
            self._keys = fused.keys(self.noise.settled(generator, len(query)), self.noise.own(generator, query), query)
        state, data = fused(self._position, values, output, self._keys)
        for value in call.frees:
            values.pop(value, None)
        if state.dtype == query.dtype:
            values[call.returns] = state  # one memory with what is handed out, for edits in place
        return state, data

    def _open(self, output: Tensor, sample: Tensor) -> None:
        if output.shape != sample.shape:
            raise ValueError(
                f"model_output has shape {tuple(output.shape)} and sample {tuple(sample.shape)}; they must be the same "
                "(a network that predicts a variance too gives twice the channels: pass the first half)"
            )
        wide = torch.promote_types(torch.promote_types(sample.dtype, output.dtype), torch.float32)
        self._combine = Combiner(sample.device)
        self.values = self._initial(sample, wide)
        _update(self.plan.lead, self.values, self._combine)

    def _touched(self, sample: Tensor) -> bool:
        """Whether the tensor handed out may have been changed in place; inference tensors do not tell."""
        return self._version is None or changes_of(sample) != self._version

    def _fold(self, sample: Tensor, query: int) -> None:
        """Take the pipeline's edit over; where nothing was edited, the remainder of the rounding is kept."""
        state, wide = self.values[query], self.values[query].dtype
        handed = state if self._returned is None else state.to(self._returned.dtype).to(sample.dtype)
        if handed is state or sample.shape != state.shape:
            self.values[query] = sample.to(wide)
        else:
            self.values[query] = state + (sample.to(wide) - handed.to(wide))


def _release(values: dict[int, Tensor], idle: list[int]) -> None:
    """Let one idle value go just before another of its size is made.

    On the host the allocator gives larger holes back to the system, and every page of them would have to be had anew.
    """
    if idle:
        values.pop(idle.pop(), None)


def changes_of(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None where it does not tell, 0 while a compiler traces the loop."""
    if torch.compiler.is_compiling():
        return 0
    return None if tensor.is_inference() else tensor._version


class LiveRegisters(list[Tensor | None]):
    """The registers alive besides the next query; an entry that is replaced is replaced in the run.

    Some video pipelines cut frames off their latents in mid-run and do the same to a scheduler's history.
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._keys = [key for key in stepper.values if key != stepper.next_query and key not in stepper._idle]
        super().__init__(stepper.values[key] for key in self._keys)

    def __setitem__(self, place: Any, value: Any) -> None:
        super().__setitem__(place, value)
        self._stepper.values[self._keys[place]] = value


def _update(updates: Iterable[Update], values: dict[int, Tensor], combine: Combiner) -> None:
    for target, terms in updates:
        values[target] = combine(terms, values)
