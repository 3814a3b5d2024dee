"""One adaptive run of one batch, and what is checked before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath, unknown_name

from ..border import Border, Model
from ..guidance import Guidance
from ..run_state import Result
from ..thresholding import Thresholding
from .monitor import Monitor
from .problem import Problem
from .registry import AdaptiveInfo, adaptive_info


@dataclass(frozen=True)
class AdaptiveRun:
    """What `sample` was asked for, checked; `run` does it for one batch."""

    info: AdaptiveInfo
    path: GaussianPath
    start: float
    end: float
    open_end: bool
    cap: int | None
    per_sample: bool
    options: dict[str, Any]

    def _check_resolution(self, x_init: Tensor) -> None:
        """Refuse tolerances that rounding alone exceeds: a run would only end at its cap or step floor."""
        wide = torch.promote_types(x_init.dtype, torch.float32)
        finest = 8 * torch.finfo(wide).eps
        chosen = {**self.info.options, **self.options}
        if isinstance(chosen.get("rtol"), float | int) and max(chosen["rtol"], chosen.get("atol", 0.0)) < finest:
            raise ValueError(
                f"rtol={chosen['rtol']:g} and atol={chosen['atol']:g} of {self.info.name!r} are finer than {wide} "
                f"resolves ({finest:.0e}); raise one of them, or start from a float64 state"
            )

    def run(
        self,
        model: Model,
        x_init: Tensor,
        samples: Sequence[int],
        *,
        prediction: str = "data",
        model_kwargs: Mapping[str, Any] | None = None,
        guidance: Guidance | None = None,
        thresholding: Thresholding | None = None,
        seed: int = 0,
        progress: bool = False,
        differentiable: bool = False,
    ) -> Result:
        """Integrate one batch; arguments as in `run` of tables.

        Raises
        ------
        ValueError
            Before any call: an option out of range, or a prediction that does not determine the equation.
        AdaptiveError
            The cap on calls or the step floor was reached.
        NonFiniteError
            The network or the error estimate was not finite.
        """
        border = Border(model, x_init, prediction, guidance, thresholding)
        self._check_resolution(x_init)
        monitor = Monitor(self.info.name, self.cap)
        index = torch.as_tensor(samples, dtype=torch.int64, device=x_init.device)
        x = x_init.to(torch.promote_types(x_init.dtype, torch.float32))
        with torch.set_grad_enabled(differentiable), _bar(self.info.name, self.cap, progress) as tick:
            problem = Problem(
                self.path, border, model_kwargs or {}, monitor, self.start, self.end, self.open_end, seed, index, tick
            )
            result = self.info.solve(problem, x, **self.options)
        protocol = {"prediction": prediction, "seed": seed, "forwards": border.forwards}
        protocol |= {"accepted": monitor.accepted, "rejected": monitor.rejected}
        return Result(result.to(x_init.dtype), border.evaluations, None, None, protocol)


def prepare(
    method: str,
    path: object,
    *,
    nfe: int | None,
    grid: Any,
    refused: Mapping[str, Any],
    options: Mapping[str, Any],
) -> AdaptiveRun:
    """Check what `sample` was asked for.

    Parameters
    ----------
    method : str
        A name of `list_adaptive()`.
    path : GaussianPath
    nfe : int, optional
        Cap on network calls.
    grid : "logsnr" (the whole path) or two path times
    refused : mapping
        Arguments of `sample` that have no meaning here and must be empty.
    options : mapping
        Options of the method.

    Raises
    ------
    ValueError
        With the first thing that is impossible.
    """
    info = adaptive_info(method)
    given = [name for name, value in refused.items() if value is not None and value != () and value != {}]
    if given:
        raise ValueError(f"method {method!r} chooses its own steps and has no rows; leave out {', '.join(given)}")
    if not isinstance(path, GaussianPath):
        missing = "is missing" if path is None else f"is a {type(path).__name__}"
        raise ValueError(f"path {missing}: method {method!r} needs a Gaussian path, such as path=LinearPath()")
    if nfe is not None and (not isinstance(nfe, int) or nfe < 1):
        raise ValueError(f"nfe={nfe!r} is not possible; for {method!r} it is a cap on network calls, at least 1")
    for key in options:
        if key not in info.options:
            raise unknown_name(f"option of method {method!r}", key, info.options)
    start, end, open_end = _interval(method, path, grid)
    chosen = dict(options)
    per_sample = bool(chosen.pop("per_sample", info.options["per_sample"]))
    return AdaptiveRun(info, path, start, end, open_end, nfe, per_sample, chosen)


def _interval(method: str, path: GaussianPath, grid: Any) -> tuple[float, float, bool]:
    if isinstance(grid, str):
        if grid != "logsnr":
            raise ValueError(f"grid={grid!r} has no meaning for {method!r}; give two times (start, end) or none")
        return 0.0, 1.0, True
    try:
        start, end = (float(time) for time in grid)
    except (TypeError, ValueError):
        raise ValueError(f"grid of {method!r} must be two path times (start, end), got {grid!r}") from None
    if not 0.0 <= start < end <= 1.0:
        raise ValueError(f"grid=({start:g}, {end:g}) of {method!r} must rise within [0, 1] (0 = noise, 1 = data)")
    return start, end, False


@contextmanager
def _bar(name: str, cap: int | None, shown: bool) -> Iterator[Callable[[], None]]:
    if not shown:
        yield lambda: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=cap, desc=name, unit="call") as bar:

        def tick() -> None:
            bar.update(1)

        yield tick
