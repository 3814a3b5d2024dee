"""One run of a table on behalf of a k-diffusion-like host: its denoiser, callback, progress bar and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .keyed_noise import keyed_normal, seed_of
from .loop import run
from .numerics import Array
from .run_state import Hook, NoiseSource, RunState
from .table import Table

Denoiser = Callable[..., Tensor]
"""(x, sigma of shape (B,), **extra_args) -> data prediction."""
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""(sigma, next sigma) -> standard normal shaped as x."""


class HostCallback(Protocol):
    """Called once a step with {"x", "i", "sigma", "sigma_hat", "denoised"}."""

    def __call__(self, step: dict[str, Any], /) -> Any:
        """`x` is what the denoiser was given at `sigma_hat`, `denoised` its answer."""


class HostRun(Hook):
    """The denoiser that `loop.run` calls, and the hook that tells the host how far it is.

    Parameters
    ----------
    model : Denoiser
    table : Table
        The time of its levels is σ.
    sigmas : (n+1,) Tensor
        As the host gave them; what it is handed back is taken from here, so that nothing is read from the device.
    scales : (rows,) array
        State of the table = scale · state of the host, at each row.
    callback : HostCallback, optional
    disable : bool or None
        Of the progress bar; None shows it on a terminal only.
    """

    def __init__(
        self,
        model: Denoiser,
        table: Table,
        sigmas: Tensor,
        scales: Array,
        callback: HostCallback | None,
        disable: bool | None,
    ) -> None:
        self.model, self.table, self.sigmas, self.callback = model, table, sigmas, callback
        self.scales = [float(scale) for scale in scales]
        self.starts = step_starts(table)
        self._row = 0
        self._bar = _bar(len(sigmas) - 1, disable)
        self._reports = self._first_calls()
        self._ends = {row - 1 for row in self.starts[1:]} | {len(table.rows) - 1}

    def run(self, x: Tensor, extra_args: Mapping[str, Any], **options: Any) -> Tensor:
        """The result of the table from `x`; options are those of `loop.run`."""
        try:
            result = run(self.table, self, x, prediction="data", model_kwargs=extra_args, hooks=[self], **options)
        finally:
            if self._bar is not None:
                self._bar.close()
        assert isinstance(result, Tensor)
        return result

    def before_model(self, run: RunState, query: Tensor) -> None:
        """Remember the row, by which the call that follows is known."""
        self._row = run.row

    def after_row(self, run: RunState) -> None:
        """Move the bar after the last row of a step."""
        if self._bar is not None and run.row in self._ends:
            self._bar.update()

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        """The host's denoiser in its own coordinates."""
        scale = self.scales[self._row]
        x = x if scale == 1.0 else x / scale
        denoised = self.model(x, sigma.contiguous(), **extra_args)
        if self.callback is not None and self._row in self._reports:
            i, sigma_hat = self._reports[self._row]
            told = {"x": x, "i": i, "sigma": self.sigmas[i], "sigma_hat": sigma_hat, "denoised": denoised}
            self.callback(told)
        return denoised

    def noise(self, sampler: NoiseSampler | None, factor: float, seed: int, samples: Tensor) -> NoiseSource:
        """Draws of the host's sampler, or keyed ones, times `factor`.

        The sampler is asked for the interval of a step; a step of several draws shares its interval out in equal
        parts, since a Brownian path asked twice for the same interval repeats itself.
        """
        intervals = self._intervals() if sampler is not None else {}

        def draw(row: int, slot: int, like: Tensor) -> Tensor:
            if sampler is None:
                z = keyed_normal(like.shape[1:], seed, samples, row, slot, dtype=like.dtype, device=like.device)
            else:
                z = sampler(*intervals[row, slot])
                if z.shape != like.shape:
                    raise ValueError(f"noise_sampler returned shape {tuple(z.shape)} for x of {tuple(like.shape)}")
                z = z.to(like)
            return z if factor == 1.0 else factor * z

        return draw

    def _first_calls(self) -> dict[int, tuple[int, Tensor]]:
        """Row of the first network call of each step → (step, σ of that call)."""
        found: dict[int, int] = {}
        for i, rows in enumerate(self._rows_of_steps()):
            calls = [k for k in rows if self.table.rows[k].calls_network]
            if calls:  # none where the first call is analytic
                found[calls[0]] = i
        times = [(self.table.rows[k].level.time, self.table.rows[self.starts[i]].level.time) for k, i in found.items()]
        raised = self.sigmas.new_tensor([here for here, _ in times]) if any(a != b for a, b in times) else None
        return {
            row: (i, self.sigmas[i] if raised is None or here == node else raised[place])
            for place, ((row, i), (here, node)) in enumerate(zip(found.items(), times, strict=True))
        }

    def _rows_of_steps(self) -> list[range]:
        ends = [*self.starts[1:], len(self.table.rows)]
        return [range(start, end) for start, end in zip(self.starts, ends, strict=True)]

    def _intervals(self) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """(row, slot) → the part of its step that a draw stands for."""
        found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        for i, rows in enumerate(self._rows_of_steps()):
            draws = [(k, slot) for k in rows for slot, z in enumerate(self.table.rows[k].noises) if z >= 0]
            high, low = self.sigmas[i], self.sigmas[i + 1]
            bounds = [high, *(torch.lerp(high, low, j / len(draws)) for j in range(1, len(draws))), low]
            found |= {key: (bounds[j], bounds[j + 1]) for j, key in enumerate(draws)}
        return found


def step_starts(table: Table) -> list[int]:
    """First row of each step: the last call at its node, since stages of the step before may stand there too.

    A pause there (churn, noise before the call) belongs to it.

    Raises
    ------
    ValueError
        The table passes a node by, so that it has no step there.
    """
    starts = []
    for i, place in enumerate(list(zip(table.nodes["signal"], table.nodes["noise"], strict=True))[:-1]):
        found = [k for k, row in enumerate(table.rows) if (row.level.signal, row.level.noise) == place]
        if not found:
            raise ValueError(f"the table of {table.method!r} has no row at its node {i}, so it has no step to report")
        start = found[-1]
        while start - 1 in found and table.rows[start - 1].query is None:
            start -= 1
        starts.append(start)
    return starts


def start_seed(extra_args: Mapping[str, Any]) -> int:
    """The seed that a host sends; without one drawn from torch's own generator, as k-diffusion's noise is."""
    seed = extra_args.get("seed")
    return seed_of(torch.default_generator) if seed is None else int(seed)


def _bar(steps: int, disable: bool | None) -> Any:
    if disable:
        return None
    from tqdm.auto import tqdm

    return tqdm(total=steps, disable=disable)
