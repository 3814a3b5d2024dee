"""What a scheduler costs beside the network: PathlineScheduler against stock diffusers, in one process, as ratios.

The floor of a step is the time to read and to write each of its states once: network output, query and history in, new
register and next state out. It is measured with `Tensor.clone`, which reads one state and writes another.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .files import write_text

SHAPES = ((1, 4, 64, 64), (1, 4, 128, 128), (16, 4, 128, 128))
_SETUP_STEPS = 50
_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True)
class Rival:
    """A stock scheduler and the pathline method that does the same."""

    title: str
    stock: str
    settings: dict[str, Any]
    method: str
    options: dict[str, Any]


RIVALS = (
    Rival("UniPC-3", "UniPCMultistepScheduler", {"solver_order": 3, **_BETAS}, "unipc", {"order": 3}),
    Rival("DEIS-3", "DEISMultistepScheduler", {"solver_order": 3, **_BETAS}, "deis", {"order": 3, "variant": "logrho"}),
    Rival("DPM-Solver++ 2M", "DPMSolverMultistepScheduler", {"solver_order": 2, **_BETAS}, "dpm++", {"order": 2}),
    Rival("DDIM", "DDIMScheduler", {"clip_sample": False, **_BETAS}, "ddim", {}),
    Rival("Euler", "EulerDiscreteScheduler", _BETAS, "euler", {}),
    Rival("Heun", "HeunDiscreteScheduler", _BETAS, "heun", {}),
    Rival("DDPM", "DDPMScheduler", {"clip_sample": False, **_BETAS}, "ddpm", {}),
    Rival("Euler ancestral", "EulerAncestralDiscreteScheduler", _BETAS, "euler-ancestral", {}),
    Rival("Euler, flow", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "euler", {}),
)


@dataclass(frozen=True)
class Timing:
    """Microseconds per network call, and milliseconds per ``set_timesteps(50)``; medians over repeats.

    Attributes
    ----------
    title, shape : the rival and the latents
    ours, stock : µs per call
    fused : the same with rows compiled by ``torch.compile``; None where that was not asked for
    floor : µs to read and write the states of one call once
    cold, warm : ms of our ``set_timesteps`` in a new scheduler, and of the next one
    stock_setup : ms of the stock one
    """

    title: str
    shape: tuple[int, ...]
    ours: float
    stock: float
    fused: float | None
    floor: float
    cold: float
    warm: float
    stock_setup: float

    @property
    def ratio(self) -> float:
        """Ours over stock, per call; below 1 is faster."""
        return self.ours / self.stock


def time_rival(
    rival: Rival,
    shape: tuple[int, ...],
    steps: int = 20,
    repeats: int = 15,
    *,
    device: str = "cpu",
    fused: bool = False,
) -> Timing:
    """Time both schedulers on latents of one shape with a model that costs nothing, in turn, in one process.

    Every run makes ``steps`` steps; times are divided by the number of network calls a scheduler asks for.
    """
    import diffusers

    from pathline.samplers.schedulers import PathlineScheduler

    stock = getattr(diffusers, rival.stock)(**rival.settings)
    settings = {"method": rival.method, "options": rival.options}

    def ours(**more: Any) -> Any:
        return PathlineScheduler.from_config(stock.config, pathline={**settings, **more})

    runners = {"ours": ours(), "stock": stock} | ({"fused": ours(fused=True)} if fused else {})
    generator = torch.Generator().manual_seed(0)
    latents, output = torch.randn(2, *shape, generator=generator).to(device)
    times: dict[str, list[float]] = {name: [] for name in (*runners, "clone", "cold", "warm", "stock_setup")}
    for repeat in range(repeats + 2):
        new: dict[str, float] = {}
        for name, scheduler in sorted(runners.items(), reverse=repeat % 2 == 0):  # who comes first finds colder caches
            new[name] = _run(scheduler, latents, output, steps, hasattr(stock, "scale_model_input"))
        fresh = ours()
        for name, scheduler in (("cold", fresh), ("warm", fresh), ("stock_setup", stock)):
            new[name] = _clock(partial(scheduler.set_timesteps, _SETUP_STEPS, device=device), 1, device)
        new["clone"] = _clock(latents.clone, 20, device)
        if repeat >= 2:  # the first runs fill caches and compile
            for name, value in new.items():
                times[name].append(value)
    median = {name: statistics.median(values) for name, values in times.items()}
    return Timing(
        rival.title,
        shape,
        1e6 * median["ours"],
        1e6 * median["stock"],
        1e6 * median["fused"] if fused else None,
        1e6 * median["clone"] / 2 * states_touched(runners["ours"]),
        *(1e3 * median[name] for name in ("cold", "warm", "stock_setup")),
    )


def states_touched(scheduler: Any) -> int:
    """States that the middle call of the current run must read (output, query, history) or write (register, next)."""
    calls = scheduler.plan.calls
    call = calls[len(calls) // 2]
    made = {u.target for u in call.updates} | {call.output}
    read = {v for u in call.updates for v, _ in u.terms if v >= 0 and v not in made} | {call.query}
    return 1 + len(read) + len(call.updates) + call.stored


def _run(scheduler: Any, x: torch.Tensor, output: torch.Tensor, steps: int, scaled: bool) -> float:
    """Seconds per network call of a pipeline's loop.

    ``scaled`` says that pipelines of this family pass their latents through ``scale_model_input``.
    """

    def loop(x: torch.Tensor) -> None:
        for t in scheduler.timesteps:
            if scaled:
                scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x, return_dict=False)[0]

    with torch.inference_mode(False), torch.no_grad():
        scheduler.set_timesteps(steps, device=x.device)
        return _clock(partial(loop, x), 1, str(x.device)) / len(scheduler.timesteps)


def _clock(work: Callable[[], Any], count: int, device: str) -> float:
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - start) / count


def run_overhead(
    repeats: int = 15,
    steps: int = 20,
    out: Path | None = None,
    progress: bool = True,
    *,
    device: str = "cpu",
    fused: bool = False,
) -> list[Timing]:
    """Time all rivals on all shapes, print a table, and optionally write the numbers as JSON."""
    from tqdm.auto import tqdm

    cases = [(rival, shape) for shape in SHAPES for rival in RIVALS]
    timings = []
    for rival, shape in tqdm(cases, desc="scheduler overhead", disable=not progress):
        timings.append(time_rival(rival, shape, steps, repeats, device=device, fused=fused))
    _print(timings)
    if out is not None:
        rows = [{**asdict(timing), "ratio": timing.ratio} for timing in timings]
        facts = {"threads": torch.get_num_threads(), "device": device, "torch": torch.__version__, "rows": rows}
        write_text(out, json.dumps(facts, indent=2) + "\n")
    return timings


def _print(timings: list[Timing]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Scheduler overhead beside the network, per network call",
        caption=f"median of interleaved repeats, {torch.get_num_threads()} threads, torch {torch.__version__}; ratio "
        "below 1: pathline is faster; floor: its states read and written once, in brackets the time over it; set-up: "
        f"set_timesteps({_SETUP_STEPS}) of a new scheduler, the next one, and the stock one",
        title_justify="left",
        caption_justify="left",
    )
    headings = ["method", "latents", "diffusers µs", "pathline µs", "ratio", "fused µs", "floor µs", "set-up ms"]
    if timings[0].fused is None:
        headings.remove("fused µs")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right", no_wrap=True)
    for row in timings:
        fused = [] if row.fused is None else [f"{row.fused:.1f} ({row.fused / row.floor:.1f})"]
        table.add_row(
            row.title,
            "×".join(map(str, row.shape)),
            f"{row.stock:.1f}",
            f"{row.ours:.1f} ({row.ours / row.floor:.1f})",
            f"[{'bold green' if row.ratio <= 1 else 'red'}]{row.ratio:.3f}[/]",
            *fused,
            f"{row.floor:.1f}",
            f"{row.cold:.1f} / {row.warm:.2f} / {row.stock_setup:.2f}",
        )
    Console(width=max(120, Console().width)).print(table)
