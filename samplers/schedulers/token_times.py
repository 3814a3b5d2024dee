"""Steps in which the tokens of a sample are at different times, as when parts of a video are given.

Tokens at the time of the call take the method's step. All others take one first-order step from their own level to the
next lower level of the run, as in stock flow schedulers, and the pipeline keeps or drops it. A token that joins later
starts with an empty history: the newest output stands in for those of times at which it was elsewhere, and where the
method goes on from an earlier state, the token takes a first-order step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import PathPoint, convert

from ..combine import affine
from .calls import Call
from .compiled import Compiled
from .output import Prediction, resolved
from .stepper import Generators, Stepper

_SAME_SHARE = 1e-6  # of the training steps: times come in float32


class TokenRun:
    """The tokens of one run; steps without times for the tokens may lie between those with them.

    Parameters
    ----------
    compiled : Compiled

    Raises
    ------
    ValueError
        The scheduler's config clips or thresholds the data prediction.
    """

    def __init__(self, compiled: Compiled) -> None:
        if compiled.rule is not None:
            raise ValueError(f"per_token_timesteps cannot be combined with {compiled.rule} of the scheduler's config")
        self._family = compiled.family
        self._slack = _SAME_SHARE * compiled.family.train_steps
        calls = compiled.plan(0).calls
        levels = [*(call.level for call in calls), compiled.table.end]
        self._levels = np.array([(level.signal, level.noise) for level in levels])
        self._labels = compiled.timesteps
        self._shown: tuple[Tensor, Tensor] | None = None
        self._elsewhere: dict[int, Tensor] = {}  # register -> tokens that were at another level when it was made

    def advance(
        self, stepper: Stepper, output: Tensor, sample: Tensor, times: Tensor, generator: Generators
    ) -> tuple[Tensor, Prediction]:
        """As `Stepper.advance`, for tokens at `times`.

        Parameters
        ----------
        output, sample : Tensor (B, T, ...)
            For velocity networks `output` is data − noise: with times for the tokens pipelines hand over the negative.
        times : Tensor (B, T), or with as many axes as `sample`

        Raises
        ------
        ValueError
            Times that do not fit the sample.
        """
        times = _fitted(times, sample)
        index = stepper.index
        if self._family.prediction == "velocity":
            output = -output
        stepper.unscale()
        call = stepper.begin(output, sample)
        values, query = stepper.values, stepper.values[call.query]
        raw = output.to(query.dtype)
        here = (times - float(self._labels[index])).abs() <= self._slack
        first, own_data = self._first_order(query, raw, times, here, index)

        newest = affine(query, raw, *call.convert)
        outputs = {c.output for c in stepper.plan.calls}
        late = {v: values[v] for v in outputs & values.keys() & self._elsewhere.keys()}
        values.update({v: torch.where(self._elsewhere[v], newest, register) for v, register in late.items()})
        data = resolved(stepper.execute(call, output, generator))
        values.update({v: register for v, register in late.items() if v in values})

        unfit = ~here | self._after(call, here, outputs)
        values[call.returns] = torch.where(unfit, first, values[call.returns])
        self._elsewhere = {v: tokens for v, tokens in self._elsewhere.items() if v in values}
        data = None if data is None else torch.where(here, data, own_data)
        return stepper.end(call, *stepper.rounded(call, data, output.dtype))

    def _on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and (signal, noise) of the run's levels on the device of `like`, copied there once."""
        if self._shown is None or self._shown[1].device != like.device or self._shown[1].dtype != like.dtype:
            labels = torch.as_tensor(self._labels, device=like.device)
            self._shown = labels, torch.as_tensor(self._levels, device=like.device, dtype=like.dtype)
        return self._shown

    def _after(self, call: Call, here: Tensor, outputs: set[int]) -> Tensor:
        """Tokens whose new state would go on from a state of another level; notes where all new registers were made."""
        nowhere = torch.zeros_like(here)
        found = dict[int, Tensor]()
        for target, terms in call.updates:
            known = {**self._elsewhere, **found}
            states = [known[v] for v, _ in terms if v in known and v not in outputs and v != call.query]
            found[target] = torch.stack([nowhere, *states]).any(0)
        after = found.get(call.returns, nowhere)
        self._elsewhere |= {target: tokens | ~here for target, tokens in found.items()}
        self._elsewhere |= {call.output: ~here, call.query: ~here}
        self._elsewhere.pop(call.returns, None)  # the next call tells where this one is
        return after

    def _first_order(
        self, query: Tensor, raw: Tensor, times: Tensor, here: Tensor, index: int
    ) -> tuple[Tensor, Tensor]:
        """States one first-order step on, and data predictions at the tokens' own levels."""
        family, wide = self._family, query.dtype
        signal, noise = (level.to(wide) for level in family.forward(times))
        rates = (torch.ones_like(signal), -torch.ones_like(signal))  # only of flows, where they are constant
        point = PathPoint(signal, noise, *rates)
        data = convert(query, raw * family.sign, point, family.prediction, "data", checked=False)
        labels, levels = self._on(query)
        lower = (labels >= times[..., None] - self._slack).sum(-1)
        to_signal, to_noise = levels[torch.where(here, index + 1, lower)].unbind(-1)
        rises = to_noise * signal > noise * to_signal  # below the last level there is nothing to do
        to_signal, to_noise = torch.where(rises, signal, to_signal), torch.where(rises, noise, to_noise)
        carry = torch.where(noise > 0, to_noise / noise, 0.0)
        return carry * query + (to_signal - carry * signal) * data, data


def _fitted(times: Tensor, sample: Tensor) -> Tensor:
    """The times with one axis for each of the sample's."""
    shape = (*times.shape, *(1,) * (sample.ndim - times.ndim))
    if len(shape) != sample.ndim or any(n not in (1, m) for n, m in zip(shape, sample.shape, strict=True)):
        raise ValueError(
            f"per_token_timesteps has shape {tuple(times.shape)}, which does not fit a sample of shape "
            f"{tuple(sample.shape)}; (batch, tokens) or one axis for each of the sample's is needed"
        )
    return times.to(sample.device).reshape(shape)
