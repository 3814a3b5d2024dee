"""`pathline calibrate`: fit a table to a source within a budget of network calls and save it."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pathline.interpolants import unknown_name

from .ranking import spectrum_of
from .runners import start_state
from .sources import Source, open_source

if TYPE_CHECKING:
    from pathline.samplers.calibrate.auto import Choice, Trial

_START = 128  # trajectories at most, however large the budget
_LEAST = 12
_FEWEST = 4
_PER_SAMPLE = 40  # calls of one sample for each call of the table, about, until everything was tried


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
    method : str
        "auto" or a name of `calibrate.fitters.FITTERS`.
    afs : bool
        Whether an analytic first step may come before the first call, which diffusers' flow pipelines do not run.
    class_means : bool
        Whether the table may need the mean of each sample's class when it is run.
    stats : str or None
        Data whose covariance serves for tables without network calls, as `spectrum_of` takes it.
    """

    source: str
    nfe: int
    guidance: float | None = None
    budget: int = 20_000
    samples: int | None = None
    seed: int = 0
    batch_size: int = 256
    device: str = "cpu"
    method: str = "auto"
    afs: bool = True
    class_means: bool = False
    stats: str | None = None

    @property
    def count(self) -> int:
        """Number of start noises."""
        if self.samples is not None:
            return self.samples
        return min(_START, max(_LEAST, self.budget // (_PER_SAMPLE * (self.nfe + 8))))


def calibrate_source(settings: CalibrationSettings, out: Path, progress: bool = True) -> Choice:
    """Choose a table and save it; one that was interrupted goes on where it stopped.

    What is finished is kept in a folder beside `out` (see `parts_folder`) until the table is written.

    Parameters
    ----------
    settings : CalibrationSettings
    out : Path
        A .safetensors file, or .json for a table without arrays: then no groups of coordinates and no mean are tried.
    progress : bool
        Show a bar over the budget.

    Raises
    ------
    ValueError
        Before any network call: an unknown source or method, guidance that the source cannot give, a file name of
        another kind, too few samples, a method without the data it needs, or an interrupted calibration with other
        settings. Later, when a method that was asked for by name is not possible; then no parts are left.
    BudgetError
        The budget does not pay for a hold-out.
    """
    from pathline.samplers.calibrate.auto import choose
    from pathline.samplers.calibrate.resume import Parts, PartsError
    from pathline.samplers.calibrate.trajectories import BudgetError, Problem

    _check(settings, out)
    source = open_source(settings.source, settings.device)
    spectrum = None if settings.stats is None else spectrum_of(settings.stats)
    indices = range(settings.count)
    parts = Parts(parts_folder(out), _kept_settings(settings, source, out))
    guidance = source.guidance(settings.guidance)
    conditions = source.kwargs(indices, settings.device)
    x = start_state(source, settings.seed, indices, torch.float32, settings.device)
    with _shown(settings.budget, progress) as shown:

        def model(*args: Any, **kwargs: Any) -> Tensor:
            shown(problem.calls, None)
            return source.model(*args, **kwargs)

        problem = Problem(model, source.path, source.prediction, guidance, conditions, settings.budget)
        try:
            choice = choose(
                problem,
                x,
                settings.nfe,
                method=settings.method,
                arrays=out.suffix != ".json",
                analytic=settings.afs,
                condition_means=settings.class_means,
                spectrum=spectrum,
                chunk=settings.batch_size,
                facts=_facts(settings, source),
                report=lambda trial: shown(problem.calls, trial),
                parts=parts,
            )
        except PartsError:
            raise
        except (ValueError, ArithmeticError) as error:  # the same settings would fail again, and others may follow
            parts.remove()
            if isinstance(error, BudgetError):
                raise BudgetError(f"{error}; raise --budget, or lower --nfe or --samples") from None
            raise
    out.parent.mkdir(parents=True, exist_ok=True)
    choice.table.save(out)
    parts.remove()
    return choice


def parts_folder(out: Path) -> Path:
    """Where the finished parts of an interrupted calibration are."""
    return out.with_name(f"{out.name}.parts")


def _check(settings: CalibrationSettings, out: Path) -> None:
    from pathline.samplers.calibrate.fitters import FITTERS

    if out.suffix not in (".json", ".safetensors"):
        raise ValueError(f"--out {out} is not possible; table files end in .json or .safetensors")
    if out.is_dir() or not next(folder for folder in out.absolute().parents if folder.exists()).is_dir():
        raise ValueError(f"--out {out} is not possible; it must name a file in a folder")
    for name, value, least, what in (
        ("nfe", settings.nfe, 1, "call is"),
        ("budget", settings.budget, 1, "call is"),
        ("batch-size", settings.batch_size, 1, "sample is"),
        ("samples", settings.count, _FEWEST, "samples (2 of them to judge) are"),
    ):
        if value < least:
            raise ValueError(f"--{name} {value} is not possible; at least {least} {what} needed")
    if settings.guidance is not None and not math.isfinite(settings.guidance):
        raise ValueError(f"--guidance {settings.guidance} is not possible; it must be a finite number")
    if settings.method == "gaussian" and settings.stats is None:
        raise ValueError("--method gaussian needs --stats, the data whose covariance the table is fitted to")
    if settings.method not in ("auto", *FITTERS):
        raise unknown_name("calibration method", settings.method, ["auto", *FITTERS])
    if settings.class_means and out.suffix == ".json":
        raise ValueError("--class-means needs a table of arrays; give --out a name that ends in .safetensors")


def _kept_settings(settings: CalibrationSettings, source: Source, out: Path) -> dict[str, Any]:
    """What determines the parts of a calibration, besides where it is run."""
    same = {key: value for key, value in asdict(settings).items() if key not in ("source", "batch_size", "device")}
    same |= {"samples": settings.count, "network": source.identity, "path": source.path.name, "file": out.suffix}
    return same | {"version": importlib.metadata.version("pathline")}


def _facts(settings: CalibrationSettings, source: Source) -> dict[str, Any]:
    return {
        "source": source.name,
        "network": source.identity,
        "seed": settings.seed,
        "method": settings.method,
        "versions": {name: importlib.metadata.version(name) for name in ("pathline", "torch")},
    }


def summary_of(choice: Choice, out: Path) -> str:
    """What was tried, the chosen table first, then best first, and what it gained."""
    lines = [f"{'hold-out error':>15}  {'calls':>7}  candidate"]
    for trial in choice.trials:
        if trial.table is None:
            lines.append(f"{'not tried':>15}  {trial.calls:>7}  {trial.name}: {trial.note}")
        else:
            lines.append(f"{trial.error:>15.5g}  {trial.calls:>7}  {trial.name}{'  (fitted)' if trial.tuned else ''}")
            if trial.note:
                lines.append(f"{'':>26}{trial.note}")
    gain = 1.0 - choice.error / choice.untuned_error
    against = f"{abs(gain):.{int(abs(gain) < 0.1)}%} {'below' if gain >= 0 else 'above'} the best untuned method"
    if not choice.trials[0].tuned:
        lines.append(f"{choice.trials[0].name}: error {choice.error:.5g}; the best untuned method was kept")
    else:
        lines.append(f"{choice.trials[0].name}: error {choice.error:.5g}, {against} ({choice.untuned_error:.5g})")
    lines[-1] += f", for {choice.calls} network calls; written to {out}"
    if gain < 0:
        lines.append("This fit lost to a method that costs nothing; --method auto would have kept that one.")
    return "\n".join(lines)


@contextmanager
def _shown(budget: int, progress: bool) -> Iterator[Callable[[int, Trial | None], None]]:
    """A bar over the budget that names the last trial."""
    from tqdm.auto import tqdm

    with tqdm(total=budget, desc="calibrate", unit="call", disable=not progress) as bar:

        def show(calls: int, trial: Trial | None) -> None:
            bar.update(calls - bar.n)
            if trial is not None:
                bar.set_postfix_str(f"{trial.name}: {trial.error:.4g}")

        yield show
