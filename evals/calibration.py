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

from .calibration_distance import FEATURE_BATCH, DistanceSettings
from .devices import check_device
from .ranking import spectrum_of
from .runners import start_state
from .sources import DataSet, Source, open_source

if TYPE_CHECKING:
    from pathline.samplers.calibrate.trials import Choice, Trial

    from .features import FeatureSpace

_START = 128  # trajectories at most, however large the budget
_LEAST = 16
_FEWEST = 4
_IMAGES = 500
_OBJECTIVES = ("error", "distance")
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
        Start noises, a third of which (up to half of few) judge and are never fitted to; by default as many as the
        budget serves.
    seed, batch_size, device
    method : str
        "auto" or a name of `calibrate.fitters.FITTERS`.
    afs : bool
        Whether an analytic first step may come before the first call, which diffusers' flow pipelines do not run.
    class_means : bool
        Whether the table may need the mean of each sample's class when it is run.
    stats : str or None
        Data whose covariance serves for tables without network calls, as `spectrum_of` takes it.
    objective : {"error", "distance"}
        What is compared: the error to converged end points, or a distance of features to the source's data.
    features : str or None
        Feature space of the distance, as `make_features` takes it.
    data : str or None
        What the distance is to, as for a sweep; the source's own data by default.
    images : int or None
        Samples of a table for the distance, of other noises than those above; 500 by default.
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
    objective: str = "error"
    features: str | None = None
    images: int | None = None
    data: str | None = None

    @property
    def count(self) -> int:
        """Number of start noises."""
        if self.samples is not None:
            return self.samples
        share = self.budget if self.objective == "error" else self.budget // 2
        return min(_START, max(_LEAST, share // (_PER_SAMPLE * (self.nfe + 8))))

    @property
    def distance(self) -> DistanceSettings | None:
        """The distance that is compared, None where the error is."""
        if self.objective == "error" or self.features is None:
            return None
        images = _IMAGES if self.images is None else self.images
        return DistanceSettings(self.features, images, self.data, self.seed, self.count, self.batch_size, self.device)


def calibrate_source(
    settings: CalibrationSettings, out: Path, progress: bool = True, *, overwrite: bool = False
) -> Choice:
    """Choose a table and save it; one that was interrupted goes on where it stopped.

    What is finished is kept in a folder beside `out` (see `parts_folder`) until the table is written.

    Parameters
    ----------
    settings : CalibrationSettings
    out : Path
        A .safetensors file, or .json for a table without arrays: then no groups of coordinates and no mean are tried.
    progress : bool
        Show a bar over the budget.
    overwrite : bool
        Replace `out` where it exists.

    Raises
    ------
    ValueError
        Before any network call: an unknown source or method, guidance that the source cannot give, a device that is not
        there, a file name of another kind, a file that exists, too few samples, a method without the data it needs, or
        an interrupted calibration with other settings. Later, when a method that was asked for by name is not possible;
        then no parts are left.
    BudgetError
        The budget does not pay for a hold-out.
    """
    from pathline.samplers.calibrate.auto import choose
    from pathline.samplers.calibrate.resume import Parts, PartsError
    from pathline.samplers.calibrate.trajectories import BudgetError, Problem

    check_settings(settings, out, overwrite)
    source = open_source(settings.source, settings.device)
    spectrum = None if settings.stats is None else spectrum_of(settings.stats)
    guidance = source.guidance(settings.guidance)
    indices, wanted = range(settings.count), settings.distance
    opened = None if wanted is None else wanted.open(source)
    parts = Parts(parts_folder(out), _kept_settings(settings, source, out, opened))
    conditions = source.kwargs(indices, settings.device)
    x = start_state(source, settings.seed, indices, torch.float32, settings.device)
    with _shown(settings.budget, progress) as shown:

        def model(*args: Any, **kwargs: Any) -> Tensor:
            shown(problem.calls, None)
            return source.model(*args, **kwargs)

        problem = Problem(model, source.path, source.prediction, guidance, conditions, settings.budget)
        distance = None
        if wanted is not None and opened is not None:
            space, data = opened
            target = parts.array("features of the data", problem, lambda: space(data.samples, FEATURE_BATCH))
            distance = wanted.build(problem, source, space, torch.from_numpy(target).to(settings.device))
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
                distance=distance,
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
                lower = "--nfe or --samples" if settings.distance is None else "--nfe, --images or --samples"
                raise BudgetError(f"{error}; raise --budget, or lower {lower}") from None
            raise
    out.parent.mkdir(parents=True, exist_ok=True)
    choice.table.save(out)
    parts.remove()
    return choice


def parts_folder(out: Path) -> Path:
    """Where the finished parts of an interrupted calibration are."""
    return out.with_name(f"{out.name}.parts")


def check_settings(settings: CalibrationSettings, out: Path, overwrite: bool = False) -> None:
    """Raise ValueError for what is wrong before anything is opened."""
    from pathline.samplers.calibrate.fitters import FITTERS

    if out.suffix not in (".json", ".safetensors"):
        raise ValueError(f"--out {out} is not possible; table files end in .json or .safetensors")
    if out.is_dir() or not next(folder for folder in out.absolute().parents if folder.exists()).is_dir():
        raise ValueError(f"--out {out} is not possible; it must name a file in a folder")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} exists; name another file, or replace it with --overwrite")
    check_device(settings.device)
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
    _check_objective(settings)
    if settings.class_means and out.suffix == ".json":
        raise ValueError("--class-means needs a table of arrays; give --out a name that ends in .safetensors")


def _check_objective(settings: CalibrationSettings) -> None:
    if settings.objective not in _OBJECTIVES:
        raise unknown_name("objective", settings.objective, _OBJECTIVES)
    given = {"--features": settings.features, "--images": settings.images, "--data": settings.data}
    if settings.objective == "distance" and settings.features is None:
        raise ValueError("--objective distance needs --features, the space in which samples are compared to the data")
    if settings.objective == "error" and (named := [name for name, value in given.items() if value is not None]):
        raise ValueError(f"{' and '.join(named)} belong to --objective distance, not to the error")
    if settings.images is not None and settings.images < 2:
        raise ValueError(f"--images {settings.images} is not possible; at least 2 samples are needed")


def _kept_settings(
    settings: CalibrationSettings, source: Source, out: Path, opened: tuple[FeatureSpace, DataSet] | None
) -> dict[str, Any]:
    """What determines the parts of a calibration, besides where it is run."""
    same = {key: value for key, value in asdict(settings).items() if key not in ("source", "batch_size", "device")}
    same |= {"samples": settings.count, "network": source.identity, "path": source.path.name, "file": out.suffix}
    if settings.distance is not None and opened is not None:
        same |= {"images": settings.distance.images, "features": opened[0].config, "data": opened[1].name}
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
    chosen, plain = choice.trials[0], choice.untuned
    apart = chosen.distance is not None
    lines = [f"{'distance':>15}  " * apart + f"{'hold-out error':>15}  {'calls':>7}  candidate"]
    for trial in choice.trials:
        if trial.table is None:
            lines.append(f"{'':>17}" * apart + f"{'not tried':>15}  {trial.calls:>7}  {trial.name}: {trial.note}")
            continue
        found = "" if trial.distance is None else f"{trial.distance:>15.5g}  "
        fitted = "  (fitted)" if trial.tuned else ""
        lines.append(f"{found}{trial.error:>15.5g}  {trial.calls:>7}  {trial.name}{fitted}")
        if trial.note:
            lines.append(f"{'':>{43 if apart else 26}}{trial.note}")
    gain = 1.0 - chosen.score / plain.score
    against = f"{abs(gain):.{int(abs(gain) < 0.1)}%} {'below' if gain >= 0 else 'above'} the best untuned method"
    what = f"{choice.objective if apart else 'error'} {chosen.score:.5g}"
    if not chosen.tuned:
        lines.append(f"{chosen.name}: {what}; the best untuned method was kept")
    else:
        lines.append(f"{chosen.name}: {what}, {against} ({plain.score:.5g})")
    lines[-1] += f", for {choice.calls} network calls; written to {out}"
    if gain < 0:
        lines.append("This fit lost to a method that costs nothing; --method auto would have kept that one.")
    return "\n".join([*lines, *_said_of_both(choice)])


def _said_of_both(choice: Choice) -> list[str]:
    """Whether error and distance agree, where a distance chose, and what must not report it."""
    chosen, nearest = choice.trials[0], choice.least_error
    if chosen.distance is None or nearest.distance is None:
        return []
    said = "Error and distance agree on it."
    if nearest is not chosen:
        said = (
            f"Error and distance disagree: {nearest.name} has an error of {nearest.error:.5g} instead of "
            f"{chosen.error:.5g}, and a distance of {nearest.distance:.5g}; --objective error chooses by the error."
        )
    return [said, "These features chose the table and cannot judge it: report in another space."]


@contextmanager
def _shown(budget: int, progress: bool) -> Iterator[Callable[[int, Trial | None], None]]:
    """A bar over the budget that names the last trial."""
    from tqdm.auto import tqdm

    with tqdm(total=budget, desc="calibrate", unit="call", disable=not progress) as bar:

        def show(calls: int, trial: Trial | None) -> None:
            bar.update(calls - bar.n)
            if trial is not None:
                bar.set_postfix_str(f"{trial.name}: {trial.score:.4g}")

        yield show
