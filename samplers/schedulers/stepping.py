"""The run as a pipeline sees it: position, history, `scale_model_input` and `step`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .arguments import refuse_arguments
from .compiled import Compiled
from .output import LostPredictionError, PathlineSchedulerOutput, Pending, Prediction, StepPair, changes_of, resolved
from .own_times import SampleRuns, is_uniform
from .stepper import Generators, LiveRegisters, StepNoise, Stepper
from .token_times import TokenRun

if TYPE_CHECKING:
    from .family import Family


class Stepping:
    """The part of a scheduler that `set_timesteps` makes anew."""

    _family: Family
    _compiled: Compiled | None
    _seed: int | None
    _offset: int
    _sigmas_shown: tuple[Tensor, int | None]
    _timesteps_shown: Tensor
    _variance: bool
    timesteps: Tensor
    sigmas: Tensor

    def _reset(self) -> None:
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._stepper: Stepper | None = None
        self._led: tuple[Tensor, Tensor] | None = None  # latents before and after an analytic first step
        self._runs: SampleRuns | None = None
        self._tokens: TokenRun | None = None
        self._prediction: Prediction = None

    def _ready(self) -> Compiled:
        if self._compiled is None:
            raise ValueError("call set_timesteps before the run")
        return self._compiled

    # --- position -----------------------------------------------------------------------------------------

    @property
    def step_index(self) -> int | None:
        """Number of the next call; None before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Call that the run begins with, where the pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at this entry of `timesteps`: from there on it is a fresh run.

        Raises
        ------
        ValueError
            There is no such entry.
        """
        self._begin_index = int(begin_index)
        if self._compiled is not None:
            self._prepare(self._compiled, self._begin_index)

    def _prepare(self, compiled: Compiled, index: int) -> None:
        """Compile the plan of a run and copy what it needs to the device, outside the loop."""
        if 0 <= index < len(compiled.timesteps):  # else `step` says so; pipelines have better words for it
            compiled.plan(index).prepare(self.timesteps.device)

    @property
    def model_outputs(self) -> list[Tensor | None]:
        """Registers alive besides the state: past outputs, and earlier states.

        They may be changed in place, and one or several be replaced by other tensors. Once they have been asked for,
        the run goes on without the shortcuts that nobody may see.
        """
        if self._stepper is None:
            return [None]
        _ = self.pred_original_sample  # before somebody edits what it is computed from
        return LiveRegisters(self._stepper)

    @model_outputs.setter
    def model_outputs(self, values: list[Tensor]) -> None:
        self.model_outputs[:] = values

    @property
    def pred_original_sample(self) -> Tensor | None:
        """Data prediction of the last step, in memory of its own.

        None before the first step, where the network's output does not determine it, and, with a warning, where what it
        is computed from was changed in place since the step.
        """
        try:
            return resolved(self._prediction)
        except LostPredictionError as lost:
            warnings.warn(str(lost), stacklevel=2)
            return None

    @property
    def last_sample(self) -> None:
        """Always None: earlier states are among `model_outputs`."""
        return None

    @last_sample.setter
    def last_sample(self, value: Tensor | None) -> None:
        if value is not None:
            raise ValueError("last_sample is not kept; replace the entries of model_outputs")

    def _enter(self, timestep: Any) -> Stepper:
        """Start the run, or start it again where the position was changed from outside."""
        compiled = self._ready()
        if self.sigmas is not self._sigmas_shown[0] or changes_of(self.sigmas) != self._sigmas_shown[1]:
            compiled = self._obey_sigmas(compiled)
        index = self._step_index if self._step_index is not None else self._begin_index
        if index is None:
            shown = self.timesteps if self.timesteps is self._timesteps_shown else None
            index = compiled.find(timestep, shown)
        plan = compiled.plan(index)
        if plan.lead and self._led is None:
            raise RuntimeError(
                "the analytic first step (afs) moves the latents before the first network call, so the pipeline must "
                "pass them through scale_model_input, and this one does not; leave afs out"
            )
        self._step_index = index
        noise = StepNoise(self._seed, self._offset, plan)
        self._stepper = Stepper(plan, index, noise, compiled.fused(index))
        return self._stepper

    def _obey_sigmas(self, compiled: Compiled) -> Compiled:
        """A terminal sigma that the pipeline assigned in place."""
        given = self.sigmas.detach().cpu().double().numpy()
        if given.shape != compiled.sigmas.shape or not np.array_equal(
            given[:-1].astype(np.float32), compiled.sigmas[:-1]
        ):
            raise ValueError(
                "only the last sigma may be changed in place; pass the others to set_timesteps(sigmas=...)"
            )
        schedule = self._family.with_terminal(compiled.schedule, float(given[-1]))
        self._compiled = compiled = Compiled.build(self._family, schedule, compiled.settings, compiled.rule)
        self._sigmas_shown = self.sigmas, changes_of(self.sigmas)
        return compiled

    # --- the run ------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself; before the first call of a run with an analytic first step, its outcome."""
        if self._stepper is not None or self._compiled is None or self._begin_index:
            return sample
        plan = self._compiled.plan(0)
        if not plan.lead:
            return sample
        led = Stepper(plan, 0, StepNoise(0, 0, plan)).lead(sample)
        self._led = (sample, led)
        return led

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        per_token_timesteps: Tensor | None = None,
        **kwargs: Any,
    ) -> PathlineSchedulerOutput | tuple[Tensor, Tensor | None]:
        """Take one network output and return the state of the next call.

        Parameters
        ----------
        model_output : Tensor (B, ...)
            In the config's prediction type; where its variance_type is a learned one, twice the channels are taken too.
        timestep : float or Tensor
            One entry is looked at in the first step only, and there only where `set_begin_index` was not called. With
            one for each sample, (B,), every sample is at its own time, see `own_times.SampleRuns`.
        sample : Tensor (B, ...)
            What the last step returned, edited or not; for the first step the initial latents.
        generator : torch.Generator or list of them, optional
            Seeds the noise of this run, instead of the seed of the config.
        return_dict : bool
        per_token_timesteps : Tensor (B, T), optional
            Times of the tokens of samples (B, T, ...), see `token_times.TokenRun`; velocity networks then hand over
            data − noise.

        Returns
        -------
        PathlineSchedulerOutput or (prev_sample, pred_original_sample), in the dtype of `model_output`

        Raises
        ------
        ValueError
            Before `set_timesteps`, past the last step, or with arguments that do not apply.
        """
        if kwargs:
            refuse_arguments(kwargs)
        self._prediction = None  # its memory is free for the next one
        if self._variance and model_output.shape[1:2] == (2 * sample.shape[1],):
            model_output = model_output[:, : sample.shape[1]]  # the rest is a learned variance
        previous, data = self._advance(model_output, timestep, sample, generator, per_token_timesteps)
        self._prediction = data
        if return_dict:
            return PathlineSchedulerOutput(previous, resolved(data))
        return StepPair((previous, data)) if isinstance(data, Pending) else (previous, data)

    def _advance(
        self, output: Tensor, timestep: Any, sample: Tensor, generator: Generators, token_times: Tensor | None
    ) -> tuple[Tensor, Prediction]:
        if self._runs is not None or (isinstance(timestep, Tensor) and timestep.ndim and not is_uniform(timestep)):
            if token_times is not None:
                raise ValueError("timestep has an entry for each sample and per_token_timesteps one for each token")
            return self._step_each(output, timestep, sample, generator)
        stepper = self._stepper
        if stepper is None or stepper.index != self._step_index:
            stepper = self._enter(timestep)
            if self._led is not None and sample is self._led[1]:
                sample = self._led[0]
        if token_times is None:
            found = stepper.advance(output, sample, generator)
        else:
            self._tokens = self._tokens or TokenRun(self._ready())
            found = self._tokens.advance(stepper, output, sample, token_times, generator)
        self._step_index = stepper.index
        if stepper.finished:
            self._stepper = None
        return found

    def _step_each(
        self, output: Tensor, timestep: Any, sample: Tensor, generator: Generators
    ) -> tuple[Tensor, Tensor | None]:
        runs = self._runs or SampleRuns(self._ready(), self._seed, self._offset)
        times = torch.as_tensor(timestep, dtype=torch.float32)
        found = runs.advance(output, times, sample, self.timesteps, generator)
        self._runs, self._stepper, self._step_index = runs, None, runs.index
        return found
