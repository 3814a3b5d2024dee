"""Steps of a batch whose samples are at different times: each sample is a run of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .calls import Plan
from .compiled import Compiled
from .output import resolved
from .stepper import Generators, StepNoise, Stepper

_SAME_TIME = 1e-3  # timesteps count up to 1000


def is_uniform(timestep: Tensor) -> bool:
    """Whether all entries are the same one; reads them unless the tensor was expanded from a single entry."""
    if timestep.numel() < 2 or not any(timestep.stride()):
        return True
    flat = timestep.reshape(-1)
    return bool((flat == flat[0]).all())


@dataclass
class _Place:
    """Where a sample is."""

    stepper: Stepper
    done: bool = False


class SampleRuns:
    """One run for each sample of a batch.

    A sample whose time is that of its next call goes on; any other time starts it anew there, with an empty history; a
    sample that was at its last call stays as it is for as long as that call's time is repeated.

    Parameters
    ----------
    compiled : Compiled
    seed : int or None
    offset : int
        Global index of the first sample.
    """

    def __init__(self, compiled: Compiled, seed: int | None, offset: int) -> None:
        self._compiled = compiled
        self._noise, self._offset = StepNoise(seed, offset, compiled.plan(0)), offset
        self._places: list[_Place | None] = []

    @property
    def index(self) -> int:
        """Number of the next call of the sample that is furthest behind."""
        return min((place.stepper.index for place in self._places if place is not None), default=0)

    def advance(
        self, output: Tensor, times: Tensor, sample: Tensor, shown: Tensor, generator: Generators
    ) -> tuple[Tensor, Tensor | None]:
        """Take one network output for all samples.

        Parameters
        ----------
        output, sample : Tensor (B, ...)
        times : Tensor with one or B entries
            Read on the host, so best kept there.
        shown : Tensor
            The timesteps of the run.

        Returns
        -------
        States (B, ...), and data predictions (B, ...) unless they are undefined for some sample.

        Raises
        ------
        ValueError
            Not one time for each sample.
        """
        times = times.reshape(1).expand(len(sample)) if times.numel() == 1 else times
        if times.numel() != len(sample):
            raise ValueError(
                f"timestep has shape {tuple(times.shape)}; one entry, or one for each of the {len(sample)} samples, is "
                "possible (per_token_timesteps for tokens)"
            )
        if len(self._places) != len(sample):
            self._places = [None] * len(sample)
        states, data = list[Tensor](), list[Tensor | None]()
        for b, time in enumerate(times.reshape(-1).tolist()):
            place = self._place(b, time, shown, len(sample), generator)
            one = slice(b, b + 1)
            state = sample[one].to(output.dtype)
            found: Tensor | None = state
            if not place.done:
                state, prediction = place.stepper.advance(output[one], sample[one])
                found = resolved(prediction)
                place.done = place.stepper.finished
            states.append(state)
            data.append(found)
        defined = [found for found in data if found is not None]
        return torch.cat(states), torch.cat(defined) if len(defined) == len(data) else None

    def _place(self, b: int, time: float, shown: Tensor, batch: int, generator: Generators) -> _Place:
        place = self._places[b]
        labels = self._compiled.timesteps
        if place is not None:
            due = len(labels) - 1 if place.done else place.stepper.index
            if abs(float(labels[due]) - time) <= _SAME_TIME:
                return place
        index = self._compiled.find(time, shown)
        plan = self._compiled.plan(index)
        place = _Place(Stepper(plan, index, self._noise_of(b, plan, batch, generator)))
        self._places[b] = place
        return place

    def _noise_of(self, b: int, plan: Plan, batch: int, generator: Generators) -> StepNoise:
        """The noise that sample `b` has in a batch at one time."""
        seeds: Sequence[int] = self._noise.settled(generator, batch) if plan.draws else [0]
        seed, first = (seeds[0], self._offset + b) if len(seeds) == 1 else (seeds[b], 0)
        return StepNoise(seed, first, plan)
