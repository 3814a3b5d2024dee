"""diffusers' own schedulers on the CIFAR-10 bed, with the noises and the error of `peers`.

python -m pathline.evals.stock_peers mixture.npz --guidance 7.5 --samples 64
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.interpolants import DiscretePath
from pathline.samplers.calibrate.trajectories import Problem

from .peers import Bench, Found, Setting
from .settings import parse_integers

_BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
_SPACINGS = ("linspace", "leading", "trailing")
_LEVELS: tuple[dict[str, bool], ...] = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True})
_MULTISTEP: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("DPMSolverMultistepScheduler", {"solver_order": order}) for order in (2, 3)),
    *(("UniPCMultistepScheduler", {"solver_order": order}) for order in (2, 3)),
    *(("DEISMultistepScheduler", {"solver_order": order}) for order in (2, 3)),
    ("LMSDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
)
_OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDIMScheduler", {"clip_sample": False}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
)


class Stock(NamedTuple):
    """A scheduler class of diffusers and its configuration."""

    name: str
    config: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name} " + " ".join(f"{k}={v}" for k, v in self.config.items())


def stock_settings() -> Iterator[Stock]:
    """Deterministic schedulers × spacings × conversions of the levels."""
    for (name, config), spacing, levels in itertools.product(_MULTISTEP, _SPACINGS, _LEVELS):
        yield Stock(name, {**config, "timestep_spacing": spacing, **levels})
    for (name, config), spacing in itertools.product(_OTHERS, _SPACINGS):
        yield Stock(name, {**config, "timestep_spacing": spacing})


def stock_error(bench: Bench, stock: Stock, nfe: int, samples: int | None = None) -> float:
    """`Bench.error` of a scheduler in the loop that every pipeline contains, with the most steps for `nfe` calls.

    Raises
    ------
    ValueError
        The scheduler takes no such number of steps, or the bench is not on the schedule of `_BETAS`.
    """
    import diffusers

    if not isinstance(bench.path, DiscretePath):
        raise ValueError(f"stock schedulers run on DDPM's schedule, not on {bench.path!r}")
    scheduler = getattr(diffusers, stock.name)(**_BETAS, **stock.config)
    for steps in range(nfe, 0, -1):
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{stock} takes no {steps} steps: {error}") from error
        if len(scheduler.timesteps) <= nfe:
            break
    batch = len(bench.start)
    rows = slice(0, batch if samples is None else samples)
    out = _loop(scheduler, bench.problem.part(rows, batch), bench.start[rows])
    return bench.distance(out, samples)


def _loop(scheduler: Any, problem: Problem, x: Tensor) -> Tensor:
    total = float(scheduler.config.num_train_timesteps)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        time = (1.0 - (t.double() + 1.0) / total).to(x.dtype).expand(len(x))
        data = problem(seen, time, **problem.model_kwargs)
        point = problem.path.at(time.double())
        signal, noise = (c.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for c in (point.signal, point.noise))
        x = scheduler.step((seen - signal * data) / noise, t, x, return_dict=False)[0]
    return x


def best_stock(bench: Bench, nfe: int, *, screen: int, keep: int) -> list[Found]:
    """Schedulers of least error: all on `screen` samples, the best `keep` of them on all."""
    first = []
    for stock in stock_settings():
        try:
            first.append((stock_error(bench, stock, nfe, screen), stock))
        except (ValueError, IndexError, AssertionError):  # what diffusers raises for runs that are too short
            continue
    first.sort(key=lambda pair: pair[0])
    found = [Found(stock_error(bench, stock, nfe), Setting(*str(stock).split(" ", 1))) for _, stock in first[:keep]]
    return sorted(found, key=lambda one: one.error)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print diffusers' best schedulers on the CIFAR-10 bed."""
    from .mixture_bed import mixture_source

    parser = argparse.ArgumentParser(prog="python -m pathline.evals.stock_peers", description=main.__doc__)
    parser.add_argument("mixture", type=Path, help="file written by python -m pathline.evals.mixture_bed")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--screen", type=int, default=6, help="samples on which every setting runs")
    parser.add_argument("--keep", type=int, default=5, help="settings that run on all samples")
    parser.add_argument("--nfe", default="3-6,8,10")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench = Bench(mixture_source(given.mixture), guidance=given.guidance, samples=given.samples)
    for nfe in parse_integers(given.nfe):
        found = best_stock(bench, nfe, screen=given.screen, keep=given.keep)
        print(f"guidance {given.guidance:g}, {nfe} calls: {found[0].error:.4f} {found[0].setting}", flush=True)


if __name__ == "__main__":
    main()
