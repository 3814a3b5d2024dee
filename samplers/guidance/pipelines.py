"""Guidance inside diffusers pipelines that do classifier-free guidance themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import DiscretePath

from ..wrappers import WrappedModel, from_diffusers
from .pairs import Pair
from .protocol import Place, check_guidance

_NETWORKS = ("unet", "transformer")
_STATES = ("sample", "hidden_states")


@contextmanager
def guided_pipeline(
    pipe: Any, guidance: Pair, *, network: str | None = None, conditional_first: bool = False
) -> Iterator[None]:
    """Let a guidance make the combination that a diffusers pipeline makes of its two branches.

    Inside the context the network gets the pipeline's batch of both branches, and both halves of what it returns are
    the guided prediction: u + w·(c − u) is then the same for every w. The pipeline's own `guidance_scale` must only be
    large enough that it evaluates both branches (above 1); the scale in force is the guidance's. Where the guidance
    is not active (`Interval`) only the conditional half is evaluated.

    Parameters
    ----------
    pipe : a pipeline that calls its network with both branches in one batch, as Stable Diffusion 1.5 to 3, SDXL, DiT
        and LTX do. Those with a distilled guidance embedding (Flux) or one call for each branch (Wan) combine nothing
        that could be replaced here.
    guidance : Pair
        Of ClassifierFree and what goes around it; its keyword arguments are not used, since the pipeline makes the
        branches. `PlusPlus` changes the step and is refused.
    network : str, optional
        Name of the pipeline's network, by default "unet" or "transformer".
    conditional_first : bool
        True for pipelines that put the conditional half first, as DiT does.

    Raises
    ------
    ValueError
        No such network, a guidance of another kind, or (in the call) a batch that is not two halves.
    """
    if not isinstance(guidance, Pair):
        raise ValueError(f"guidance={guidance!r} has not two branches, which are all that a pipeline evaluates")
    check_guidance(guidance, None)
    names = [name for name in ((network,) if network else _NETWORKS) if getattr(pipe, name, None) is not None]
    if not names:
        raise ValueError(f"{type(pipe).__name__} has no network {network or ' or '.join(_NETWORKS)}; name it")
    module = getattr(pipe, names[0])
    original = module.forward
    module.forward = _Guided(original, pipe, module, guidance, conditional_first)
    try:
        yield
    finally:
        module.forward = original


class _Guided:
    """The forward of a network inside `guided_pipeline`."""

    def __init__(self, original: Any, pipe: Any, module: Any, guidance: Pair, conditional_first: bool) -> None:
        self.original, self.pipe, self.module, self.guidance = original, pipe, module, guidance
        self.own, self.free = (0, 1) if conditional_first else (1, 0)
        self.signature = inspect.signature(original)
        self.memory: dict[str, Tensor] = {}
        self.last: float | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        given = bound.arguments
        state = next((name for name in _STATES if name in given), None)
        if state is None or len(given[state]) % 2:
            raise ValueError(
                f"the pipeline calls its network with {sorted(given)}, not with two branches in one batch; give it a "
                "guidance_scale above 1"
            )
        batch, place = len(given[state]), self._place(given["timestep"])
        x = given[state].chunk(2)[self.own]
        if not self.guidance.active(place):
            given.update({name: _half(value, batch, self.own) for name, value in given.items()})
            return _with(self.original(*bound.args, **bound.kwargs), lambda own: torch.cat([own, own]))
        channels, sign = x.shape[1], self._model.sign

        def guided(both: Tensor) -> Tensor:
            means = sign * both[:, :channels]  # what there is besides is a learned variance
            halves = means.chunk(2)
            made = sign * self.guidance.combine(halves[self.own], halves[self.free], x, place)
            made = torch.cat([made, made]).to(both.dtype)
            return made if both.shape[1] == channels else torch.cat([made, both[:, channels:]], dim=1)

        return _with(self.original(*bound.args, **bound.kwargs), guided)

    @cached_property
    def _model(self) -> WrappedModel:
        return from_diffusers(self.module, self.pipe.scheduler)

    def _place(self, timestep: Any) -> Place:
        from ..adaptive.problem import level_at

        label = float(torch.as_tensor(timestep).flatten()[0])
        times = [float(t) for t in self.pipe.scheduler.timesteps]
        distinct = list(dict.fromkeys(times))
        if self.last is not None and label != self.last and label == times[0]:
            self.memory = {}  # another run
        repeated, self.last = label == self.last, label
        step = min(range(len(distinct)), key=lambda k: abs(distinct[k] - label))
        level = level_at(self._model.path, _path_time(self._model, self.pipe.scheduler, label))
        return Place(
            level, self._model.prediction, self.memory, step=step, steps=len(distinct), first_stage=not repeated
        )


def _path_time(model: WrappedModel, scheduler: Any, label: float) -> float:
    """Path time of what the pipeline gives its network as time."""
    if isinstance(model.path, DiscretePath):
        return 1.0 - (label + 1.0) / model.path.steps
    share = label / float(scheduler.config.get("num_train_timesteps", 1000))
    return share if scheduler.config.get("invert_sigmas") else 1.0 - share


def _half(value: Any, batch: int, which: int) -> Any:
    """One half of every tensor of the batch in an argument."""
    if isinstance(value, Tensor):
        return value.chunk(2)[which] if value.shape[:1] == (batch,) else value
    if isinstance(value, Mapping):
        return {key: _half(inner, batch, which) for key, inner in value.items()}
    return type(value)(_half(inner, batch, which) for inner in value) if type(value) in (list, tuple) else value


def _with(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A network's return value with its tensor changed."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    output.sample = change(output.sample)
    return output
