"""The state of one run of a scheduler: registers, position, what the pipeline was handed, noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ..anchors import anchor_values
from ..combine import affine, check_table_fits
from ..keyed_noise import run_keys, run_normals, seed_of
from .calls import Call, Plan, Work
from .fused import FusedPlan
from .memory import Memory, memory_for
from .output import FromParts, FromRegister, Pending, Prediction, changes_of, unshared
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
    plan : Plan
        Whose draws they are.
    """

    def __init__(self, seed: int | None, offset: int, plan: Plan) -> None:
        self.seed, self.offset, self._plan = seed, offset, plan
        self._seeds: list[int] | None = None
        self._keys: Tensor | None = None
        self._each: Sequence[Tensor] = ()  # the keys of each draw

    def __call__(self, row: int, slot: int, like: Tensor, generator: Generators) -> Tensor:
        """Standard normals shaped as `like`; errors as in `keys`."""
        if self._keys is None or self._keys.shape[1] != like.shape[0]:
            self.keys(generator, like)
        return run_normals(self._each[self._plan.places[row, slot]], like)

    def keys(self, generator: Generators, like: Tensor) -> Tensor:
        """Keys (draws, B) of all draws, for samples like these; the seeds are settled the first time.

        With a seed for each sample, every one is the first of its seed.

        Raises
        ------
        ValueError
            A list of generators whose length is not the batch size.
        """
        batch = len(like)
        if self._keys is None or self._keys.shape[1] != batch:
            seeds = self.settled(generator, batch)
            samples = torch.arange(self.offset, self.offset + batch, device=like.device)
            alone = len(seeds) > 1
            self._keys = run_keys(seeds, samples * 0 if alone else samples, self._plan.draws_on(like.device))
            self._each = self._keys.unbind()
        return self._keys

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
        if not isinstance(generator, Sequence) or not all(isinstance(g, torch.Generator) for g in generator):
            raise TypeError(f"generator is a torch.Generator or a list of them, got {generator!r}")
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
    finished : bool
        True after the last call.
    """

    def __init__(self, plan: Plan, index: int, noise: StepNoise, fused: FusedPlan | None = None) -> None:
        self.plan, self.noise = plan, noise
        self.index, self._position, self.finished = index, 0, len(plan.calls) == 0
        self.values: dict[int, Tensor] = {}
        self._returned: Tensor | None = None  # what the pipeline holds; the register itself unless it was rounded
        self._rounded = False
        self._version: int | None = None
        self._work: tuple[Work, ...] | None = None
        self._memory: Memory | None = None
        self._private: set[int] = set()  # registers that only this run has ever held
        self._readers: dict[int, ref[Pending]] = {}  # of registers that a prediction may yet be made from
        self._adopted = True  # whether the query's memory is the pipeline's own
        self._fused = fused

    def __getstate__(self) -> dict[str, Any]:
        """A copy has its own memory, for which no prediction waits."""
        return {**self.__dict__, "_readers": {}}

    @property
    def next_query(self) -> int:
        """The value that the network is called at next."""
        return self.plan.calls[self._position].query

    def lead(self, sample: Tensor) -> Tensor:
        """The state of the first call from the initial one, where the table's first rows make no call."""
        values = self._initial(sample, torch.promote_types(sample.dtype, torch.float32))
        _update(values, self.plan.work_on(values[0])[0])
        return values[self.next_query].to(sample.dtype)

    def _initial(self, sample: Tensor, wide: torch.dtype) -> dict[int, Tensor]:
        """Value 0 is the start; the anchors that tables of a plan can have are constants."""
        check_table_fits(self.plan.table, sample.shape[1:])
        start = sample.to(wide)
        return {0: start, **anchor_values(self.plan.table, start)} if self.plan.table.anchors else {0: start}

    def advance(self, output: Tensor, sample: Tensor, generator: Generators = None) -> tuple[Tensor, Prediction]:
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
        if output.shape != sample.shape:
            raise ValueError(
                f"model_output has shape {tuple(output.shape)} and sample {tuple(sample.shape)}; they must be the same "
                "(a network that predicts a variance too gives twice the channels: pass the first half)"
            )
        call = self.plan.calls[self._position]
        self._adopted = False
        if self._work is None:
            self._open(output, sample)
        elif sample is not self._returned or (self._rounded and self._touched(sample)):
            self._fold(sample, call.query)
            self._check_shapes(sample)
        if self._adopted or call.query not in call.frees:  # the pipeline may write its next state over this one
            kept = [value for value, tensor in self.values.items() if tensor is sample and value not in call.frees]
            self.values.update((value, sample.clone()) for value in kept)
        return call

    def _check_shapes(self, sample: Tensor) -> None:
        for value, tensor in self.values.items():
            if tensor.shape != sample.shape:
                raise ValueError(
                    f"sample has shape {tuple(sample.shape)}, but register {value} has {tuple(tensor.shape)}; "
                    "a pipeline that cuts its latents in mid-run must do the same to scheduler.model_outputs"
                )

    def end(self, call: Call, state: Tensor, data: Prediction) -> tuple[Tensor, Prediction]:
        """Go on to the next call, with `state` in the pipeline's hands."""
        self._rounded = state is not self.values[call.returns]
        if self._rounded:
            self._version = changes_of(state)
        else:
            self._private.discard(call.returns)
        self._returned = state
        self._position += 1
        self.index += 1
        self.finished = self._position == len(self.plan.calls)
        return state, data

    def rounded(self, call: Call, data: Prediction, dtype: torch.dtype) -> tuple[Tensor, Prediction]:
        """The state that `call` has made, and its data prediction, in the dtype of the network."""
        state = self.values[call.returns]
        if state.dtype == dtype:
            return state, data
        return state.to(dtype), data.to(dtype) if isinstance(data, Tensor) else data

    def execute(self, call: Call, output: Tensor, generator: Generators) -> Prediction:
        """The call on the registers, one element-wise operation after another; returns the data prediction."""
        values, rule, memory = self.values, self.plan.rule, self._memory
        assert self._work is not None
        query = values[call.query]
        raw = output if output.dtype == query.dtype else output.to(query.dtype)
        data: Prediction = None
        if rule is not None and call.data is not None:
            raw = data = rule(affine(query, raw, *call.data))
        values[RAW] = raw
        if call.stored:
            self._store(call, query, raw, output)
        if call.data is None or (rule is not None and data is not None and values.get(call.output) is data):
            data = self._from_register(call, output.dtype)
        elif rule is None and call.data:
            data = self._from_parts(call, query, raw, output.dtype)
        for value, row, slot in call.draws:
            values[value] = self.noise(row, slot, query, generator)
        for target, evaluate in self._work[self._position + 1]:
            values[target] = evaluate(values, None if memory is None else memory.take(query))
        del values[RAW]
        if memory is not None:
            self._private.update(*((draw.value for draw in call.draws), (update.target for update in call.updates)))
        self._free(call.frees)
        return data

    def _store(self, call: Call, query: Tensor, raw: Tensor, output: Tensor) -> None:
        """Keep the output value of a call."""
        room = None if self._memory is None else self._memory.take(query)
        stored = affine(query, raw, *call.convert, out=room)
        if stored is output:  # a compiled network may write its next output over this one
            stored = output.clone() if room is None else room.copy_(output)
        self.values[call.output] = stored
        if stored is not raw:
            self._private.add(call.output)

    def _from_parts(self, call: Call, query: Tensor, raw: Tensor, dtype: torch.dtype) -> Prediction:
        """The data prediction, or how it will be computed where nothing can happen to its parts unnoticed."""
        assert call.data is not None  # not their truth, on which a compiled loop would depend
        assert len(call.data) == 2
        if torch.compiler.is_compiling() or not self._can_wait(query, raw):
            found = affine(query, raw, *call.data)
            return (found.clone() if found is raw else found).to(dtype)
        return self._watched(call.query, FromParts(dtype, query, raw, call.data))

    def _can_wait(self, query: Tensor, raw: Tensor) -> bool:
        """Whether changes of a call's tensors would be noticed later, and no graph is recorded."""
        if query.device.type != "cpu" or self._adopted or torch.is_grad_enabled():
            return False
        return not (query.is_inference() or raw.is_inference())

    def _from_register(self, call: Call, dtype: torch.dtype) -> Prediction:
        """The data prediction that is kept as a register."""
        register = self.values[call.output]
        if torch.compiler.is_compiling():
            return unshared(register, call.scale).to(dtype)
        return self._watched(call.output, FromRegister(dtype, register, call.scale))

    def _watched(self, value: int, pending: Pending) -> Pending:
        """Keep the memory of a register until the prediction made from it is gone."""
        if self._memory is not None:
            self._readers[value] = ref(pending)
        return pending

    def _free(self, values: Iterable[int]) -> None:
        """Let registers go; memory that nobody else has seen or may yet is written again."""
        for value in values:
            tensor = self.values.pop(value, None)
            if self._memory is None:
                continue
            reader = self._readers.pop(value, None)
            if value in self._private:
                self._private.remove(value)
                if tensor is not None and (reader is None or reader() is None):
                    self._memory.give(tensor)

    def _execute_fused(self, call: Call, output: Tensor, generator: Generators) -> tuple[Tensor, Prediction]:
        fused, values = self._fused, self.values
        assert fused is not None
        query = values[call.query]
        keys = self.noise.keys(generator, query) if call.draws else None
        data: Prediction
        state, data = fused(self._position, values, output, keys)
        if data is None and call.data is None:
            data = self._from_register(call, output.dtype)
        self._free(call.frees)
        if state.dtype == query.dtype:
            values[call.returns] = state  # one memory with what is handed out, for edits in place
        return state, data

    def _open(self, output: Tensor, sample: Tensor) -> None:
        wide = torch.promote_types(torch.promote_types(sample.dtype, output.dtype), torch.float32)
        self.values = self._initial(sample, wide)
        self._work = self.plan.work_on(self.values[0])
        self._adopted = sample.dtype == wide
        self._memory = memory_for(self.values[0])
        _update(self.values, self._work[0])

    def unscale(self) -> None:
        """Keep network outputs themselves as registers from now on, one operation slower, for others to see."""
        if self.plan.unscaled is None:
            return
        scales = ((call.output, call.scale) for call in self.plan.calls)
        self.values.update({v: scale * self.values[v] for v, scale in scales if scale != 1.0 and v in self.values})
        self.plan, self._fused = self.plan.unscaled, None
        if self._work is not None:
            self._work = self.plan.work_on(self.values[self.next_query])

    def show(self, values: Iterable[int]) -> None:
        """Note that others hold these registers from now on."""
        self._private.difference_update(values)

    def _touched(self, sample: Tensor) -> bool:
        """Whether the tensor handed out may have been changed in place; inference tensors do not tell."""
        return self._version is None or changes_of(sample) != self._version

    def _fold(self, sample: Tensor, query: int) -> None:
        """Take the pipeline's edit over; where nothing was edited, the remainder of the rounding is kept."""
        state, wide = self.values[query], self.values[query].dtype
        handed = state if self._returned is None else state.to(self._returned.dtype).to(sample.dtype)
        if handed is state or sample.shape != state.shape:
            self.values[query] = sample.to(wide)
            self._adopted = sample.dtype == wide
            self._private.discard(query)
        else:
            self.values[query] = state + (sample.to(wide) - handed.to(wide))


class LiveRegisters(list[Tensor | None]):
    """The registers alive besides the next query; an entry that is replaced is replaced in the run.

    Some video pipelines cut frames off their latents in mid-run and do the same to a scheduler's history.
    """

    def __init__(self, stepper: Stepper) -> None:
        stepper.unscale()
        self._stepper = stepper
        self._keys = [key for key in stepper.values if key != stepper.next_query]
        super().__init__(stepper.values[key] for key in self._keys)
        stepper.show(self._keys)

    def __setitem__(self, place: Any, value: Any) -> None:
        keys, values = (self._keys[place], value) if isinstance(place, slice) else ([self._keys[place]], [value])
        values = list(values)
        if len(values) != len(keys) or not all(isinstance(v, Tensor) for v in values):
            raise ValueError(f"model_outputs[{place!r}] takes {len(keys)} tensor(s) of the run, got {value!r}")
        super().__setitem__(place, values if isinstance(place, slice) else value)
        self._stepper.values.update(zip(keys, values, strict=True))


def _update(values: dict[int, Tensor], work: Work) -> None:
    for target, evaluate in work:
        values[target] = evaluate(values, None)
