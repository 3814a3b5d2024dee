"""`pathline calibrate`: fit a table to a source within a budget of network calls and save it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .runners import start_state
from .sources import open_source

_START = 128  # trajectories at most, however large the budget


@dataclass(frozen=True)
class CalibrationSettings:
    """What to calibrate, and what it may cost.

    Attributes
    ----------
    source : str
        As in `open_source`.
    nfe : int
        Network calls of the table.
    guidance : float or None
    budget : int
        Network calls in all; one sample once through the network is one, and so is a guided pair.
    samples : int or None
        Start noises, a third of which judge and are never fitted to; by default as many as the budget serves.
    seed, batch_size, device
    """

    source: str
    nfe: int
    guidance: float | None = None
    budget: int = 20_000
    samples: int | None = None
    seed: int = 0
    batch_size: int = 256
    device: str = "cpu"


def calibrate_source(settings: CalibrationSettings, out: Path, progress: bool = True) -> Any:
    """Choose a table, print what was tried, and save it; returns the `Choice`.

    Raises
    ------
    ValueError
        An unknown source, guidance that it cannot give, a file name of another kind, too few samples.
    BudgetError
        The budget does not pay for a hold-out.
    """
    from pathline.samplers.calibrate.auto import choose
    from pathline.samplers.calibrate.trajectories import Problem

    if out.suffix not in (".json", ".safetensors"):
        raise ValueError(f"--out {out} is not possible; table files end in .json or .safetensors")
    if settings.nfe < 1:
        raise ValueError(f"--nfe {settings.nfe} is not possible; at least 1 call is needed")
    source = open_source(settings.source, settings.device)
    count = settings.samples or min(_START, max(12, settings.budget // (40 * (settings.nfe + 8))))
    indices = range(count)
    problem = Problem(
        source.model,
        source.path,
        source.prediction,
        source.guidance(settings.guidance),
        source.kwargs(indices, settings.device),
        settings.budget,
    )
    x = start_state(source, settings.seed, indices, torch.float32, settings.device)
    facts = {
        "source": source.name,
        "network": source.identity,
        "seed": settings.seed,
        "versions": {name: importlib.metadata.version(name) for name in ("pathline", "torch")},
    }
    with _shown(settings.budget, progress) as shown:
        choice = choose(
            problem,
            x,
            settings.nfe,
            chunk=settings.batch_size,
            facts=facts,
            report=lambda trial: shown(problem.calls, trial),
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    choice.table.save(out)
    return choice


def summary_of(choice: Any, out: Path) -> str:
    """What was tried, best first, and what it gained."""
    lines = [f"{'hold-out error':>15}  {'calls':>7}  candidate"]
    for trial in choice.trials:
        if trial.table is None:
            lines.append(f"{'not tried':>15}  {trial.calls:>7}  {trial.name}: {trial.note}")
        else:
            lines.append(f"{trial.error:>15.5g}  {trial.calls:>7}  {trial.name}{'  (fitted)' if trial.tuned else ''}")
    gain = 1.0 - choice.error / choice.untuned_error
    lines.append(
        f"{choice.trials[0].name}: error {choice.error:.5g}, {gain:.0%} below the best untuned method "
        f"({choice.untuned_error:.5g}), for {choice.calls} network calls; written to {out}"
    )
    return "\n".join(lines)


@contextmanager
def _shown(budget: int, progress: bool) -> Iterator[Callable[[int, Any], None]]:
    """A bar over the budget that names the last trial."""
    from tqdm.auto import tqdm

    with tqdm(total=budget, desc="calibrate", unit="call", disable=not progress) as bar:

        def show(calls: int, trial: Any) -> None:
            bar.update(calls - bar.n)
            bar.set_postfix_str(f"{trial.name}: {trial.error:.4g}")

        yield show
