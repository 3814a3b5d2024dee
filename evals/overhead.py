"""What a scheduler costs beside the network: PathlineScheduler against stock diffusers, in one process, as ratios."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .files import write_text

SHAPES = ((1, 4, 64, 64), (1, 4, 128, 128), (16, 4, 128, 128))
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
    Rival("DPM-Solver++ 2M", "DPMSolverMultistepScheduler", {"solver_order": 2, **_BETAS}, "dpm++", {"order": 2}),
    Rival("DDIM", "DDIMScheduler", {"clip_sample": False, **_BETAS}, "ddim", {}),
    Rival("Euler", "EulerDiscreteScheduler", _BETAS, "euler", {}),
    Rival("Heun", "HeunDiscreteScheduler", _BETAS, "heun", {}),
    Rival("Euler, flow", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "euler", {}),
)


@dataclass(frozen=True)
class Timing:
    """Microseconds per network call (median over repeats) and milliseconds per ``set_timesteps``."""

    title: str
    shape: tuple[int, ...]
    ours: float
    stock: float
    ours_setup: float
    stock_setup: float
    add: float

    @property
    def ratio(self) -> float:
        """Ours over stock, per call; below 1 is faster."""
        return self.ours / self.stock


def time_rival(rival: Rival, shape: tuple[int, ...], steps: int = 20, repeats: int = 15) -> Timing:
    """Time both schedulers on latents of one shape with a model that costs nothing, in turn, in one process.

    Every run makes ``steps`` steps; times are divided by the number of network calls a scheduler asks for.
    """
    import diffusers

    from pathline.samplers.schedulers import PathlineScheduler

    stock = getattr(diffusers, rival.stock)(**rival.settings)
    ours = PathlineScheduler.from_config(stock.config, pathline={"method": rival.method, "options": rival.options})
    generator = torch.Generator().manual_seed(0)
    latents, output = torch.randn(2, *shape, generator=generator)
    times: dict[str, list[float]] = {name: [] for name in ("ours", "stock", "ours_setup", "stock_setup", "add")}
    for repeat in range(repeats + 2):
        for name, scheduler in (("ours", ours), ("stock", stock)):
            setup, call = _run(scheduler, latents, output, steps, hasattr(stock, "scale_model_input"))
            if repeat >= 2:  # the first runs fill caches
                times[name].append(call)
                times[f"{name}_setup"].append(setup)
        if repeat >= 2:
            times["add"].append(_clock(lambda: torch.add(latents, output), 20))
    median = {name: statistics.median(values) for name, values in times.items()}
    return Timing(
        rival.title,
        shape,
        1e6 * median["ours"],
        1e6 * median["stock"],
        1e3 * median["ours_setup"],
        1e3 * median["stock_setup"],
        1e6 * median["add"],
    )


def _run(scheduler: Any, x: torch.Tensor, output: torch.Tensor, steps: int, scaled: bool) -> tuple[float, float]:
    """Seconds for ``set_timesteps``, and seconds per network call of the loop after it.

    ``scaled`` says that pipelines of this family pass their latents through ``scale_model_input``.
    """
    with torch.inference_mode(False), torch.no_grad():
        start = time.perf_counter()
        scheduler.set_timesteps(steps)
        middle = time.perf_counter()
        for t in scheduler.timesteps:
            if scaled:
                scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x, return_dict=False)[0]
        end = time.perf_counter()
    return middle - start, (end - middle) / len(scheduler.timesteps)


def _clock(work: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count


def run_overhead(repeats: int = 15, steps: int = 20, out: Path | None = None, progress: bool = True) -> list[Timing]:
    """Time all rivals on all shapes, print a table, and optionally write the numbers as JSON."""
    from tqdm.auto import tqdm

    cases = [(rival, shape) for shape in SHAPES for rival in RIVALS]
    timings = []
    for rival, shape in tqdm(cases, desc="scheduler overhead", disable=not progress):
        timings.append(time_rival(rival, shape, steps, repeats))
    _print(timings)
    if out is not None:
        rows = [{**asdict(timing), "ratio": timing.ratio} for timing in timings]
        write_text(out, json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=2) + "\n")
    return timings


def _print(timings: list[Timing]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="Scheduler overhead beside the network, per network call",
        caption=f"median of interleaved repeats, {torch.get_num_threads()} threads, {torch.__version__}; one add = "
        "torch.add of two latents; ratio below 1: pathline is faster",
        title_justify="left",
        caption_justify="left",
    )
    headings = ("method", "latents", "pathline µs", "diffusers µs", "ratio", "adds", "one add µs", "setup ms")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right", no_wrap=True)
    for row in timings:
        table.add_row(
            row.title,
            "×".join(map(str, row.shape)),
            f"{row.ours:.1f}",
            f"{row.stock:.1f}",
            f"[{'bold green' if row.ratio <= 1 else 'red'}]{row.ratio:.2f}[/]",
            f"{row.ours / row.add:.1f}",
            f"{row.add:.2f}",
            f"{row.ours_setup:.2f} / {row.stock_setup:.2f}",
        )
    Console(width=max(110, Console().width)).print(table)
