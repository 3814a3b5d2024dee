"""A scheduler whose batch is a population: a reward of the predicted data steers a diffusers pipeline.

At every step the data predicted by the pipeline's network (after its own guidance) are rewarded, and latents, network
output and history are gathered alike, so that what the pipeline gets back are the particles kept. What the pipeline
itself holds for each image cannot be gathered: all images of a batch must have one prompt (`num_images_per_prompt`).
Rewards see latents; `steering.through_decoder(pipe.vae, reward)` makes them see images. `Twisted` needs gradients
through the network, which a scheduler does not see; use `steered_sample` for it. The method must draw noise, for flow
models too. Nothing of the steering goes into the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..combine import affine
from ..run_state import RunState
from ..steering import Selection, Steering
from .base import PathlineScheduler
from .calls import Call, Plan
from .output import Prediction
from .stepper import Generators, StepNoise, Stepper

_OUTPUT = "network_output"


class ParticleStepper(Stepper):
    """A run whose batch is steered before each step.

    Parameters
    ----------
    plan, index, noise : as in `Stepper`
    steering : Steering or Selection
    """

    def __init__(self, plan: Plan, index: int, noise: StepNoise, steering: Steering | Selection) -> None:
        super().__init__(plan, index, noise)
        self._steering = steering
        self._rows = [k for k, row in enumerate(plan.table.rows) if row.calls_network]
        self._run: RunState | None = None

    def advance(self, output: Tensor, sample: Tensor, generator: Generators = None) -> tuple[Tensor, Prediction]:
        """As in `Stepper`; the state returned, its history and `output` are those of the particles kept."""
        call = self.begin(output, sample)
        run = self._entered(sample, generator)
        data: Prediction = None
        if self._steering.due(run) and call.data != ():
            run.extras[_OUTPUT] = output
            self._steering.at_data(run, self._data(call, output))
            output, self.values = run.extras.pop(_OUTPUT), run.values
        data = self.execute(call, output, generator)
        if self._position == len(self.plan.calls) - 1:
            made = self.values[call.returns]
            run.values, run.row = self.values, len(self.plan.table.rows) - 1
            self._steering.at_end(run)
            self.values = run.values
            if self.values[call.returns] is not made:
                data = self.values[call.returns].clone()  # the result: what else was predicted is out of order
        return self.end(call, *self.rounded(call, data, output.dtype))

    def _entered(self, sample: Tensor, generator: Generators) -> RunState:
        """The run as hooks see it, at the call that is due."""
        if self._run is None:
            first = self.noise.offset
            slots = torch.arange(first, first + len(sample), device=sample.device)
            seed = self.noise.settled(generator, len(sample))[0]
            self._run = RunState(self.plan.table, self.values, slots, {}, seed=seed)
        self._run.values, self._run.row = self.values, self._rows[self._position]
        return self._run

    def _data(self, call: Call, output: Tensor) -> Tensor:
        query = self.values[call.query]
        raw = output.to(query.dtype)
        if not call.data:  # the output value is the data
            return call.scale * affine(query, raw, *call.convert)
        data = affine(query, raw, *call.data)
        return data if self.plan.rule is None else self.plan.rule(data)


class ParticleScheduler(PathlineScheduler):
    """DDIM with eta=1 whose batch is a population: after `steer(Steering(reward))` pipelines draw what is rewarded."""

    default_pathline: ClassVar[Mapping[str, Any]] = {"method": "ddim", "options": {"eta": 1.0}}
    _steering: Steering | Selection | None = None

    @property
    def steering(self) -> Steering | Selection | None:
        """What steers; holds weights, trace and log Ẑ of the last run."""
        return self._steering

    def steer(self, steering: Steering | Selection | None) -> None:
        """Steer the next runs, or (None) no longer.

        Raises
        ------
        ValueError
            Something that needs more than data predictions.
        """
        if steering is not None and not isinstance(steering, Steering | Selection):
            raise ValueError(
                f"{type(steering).__name__} cannot steer a pipeline, whose network a scheduler does not see; pass a "
                "Steering or a Selection, or use steered_sample"
            )
        self._steering = steering

    def _enter(self, timestep: Any) -> Stepper:
        stepper = super()._enter(timestep)
        if self._steering is None:
            return stepper
        self._stepper = ParticleStepper(stepper.plan, stepper.index, stepper.noise, self._steering)
        return self._stepper

    def _advance(
        self, output: Tensor, timestep: Any, sample: Tensor, generator: Generators, token_times: Tensor | None
    ) -> tuple[Tensor, Prediction]:
        if token_times is not None and self._steering is not None:
            raise ValueError("per_token_timesteps and steering do not go together; call steer(None) first")
        return super()._advance(output, timestep, sample, generator, token_times)

    def _step_each(
        self, output: Tensor, timestep: Any, sample: Tensor, generator: Generators
    ) -> tuple[Tensor, Tensor | None]:
        if self._steering is not None:
            raise ValueError("steered samples are at one time; a timestep for each of them is not possible")
        return super()._step_each(output, timestep, sample, generator)
