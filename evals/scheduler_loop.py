"""The same cell through diffusers: a pipeline's own loop, or a plain one, with PathlineScheduler inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pathline.samplers import Table

from .counting import CountedModel
from .settings import Cell
from .sources import Source


class SchedulerRun:
    """One cell run by a diffusers loop; counts at the network, whatever loop calls it.

    Parameters
    ----------
    source : Source
        With a diffusers side.
    cell : Cell
    table : Table
        What the library would run; its number of steps is what ``num_inference_steps`` means.
    """

    def __init__(self, source: Source, cell: Cell, table: Table) -> None:
        self.source, self.cell = source, cell
        self.steps = len(table.nodes["signal"]) - 1
        self.rows = 0
        if source.network is None or source.scheduler is None:
            raise ValueError(f"{source.name} has no diffusers side; use the runner 'sample'")
        self.pipeline: Any = source.pipeline() if source.pipeline is not None else None
        self.scheduler = make_scheduler(source.scheduler(), cell)

    def __call__(self, x: Tensor, indices: range, kwargs: dict[str, Any]) -> Tensor:
        """Samples (B, ...) from start states x of these global indices."""
        self.scheduler.set_sample_offset(indices.start)
        if type(self.pipeline).__name__ == "DDPMPipeline" and not kwargs:
            return self._by_pipeline(x)
        return self._by_loop(x, kwargs)

    def _by_loop(self, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """The loop every diffusers pipeline contains."""
        network = CountedModel(self.source.network)
        self.scheduler.set_timesteps(self.steps, device=x.device)
        for t in self.scheduler.timesteps:
            output = network(self.scheduler.scale_model_input(x, t), t.expand(len(x)), **kwargs)
            x = self.scheduler.step(output, t, x, return_dict=False)[0]
        self.rows += network.rows
        return x

    def _by_pipeline(self, x: Tensor) -> Tensor:
        """The pipeline's own call; the start state is set, and calls are counted, by hooks."""
        pipeline = self.pipeline
        stock = pipeline.scheduler
        with self._watched(pipeline.unet, x), _kept_last(self.scheduler) as last:
            pipeline.scheduler = self.scheduler
            try:
                pipeline(batch_size=len(x), num_inference_steps=self.steps, output_type="pt")
            finally:
                pipeline.scheduler = stock
        return last[-1]

    @contextmanager
    def _watched(self, network: torch.nn.Module, start: Tensor) -> Iterator[None]:
        """Count calls of a network; at the first one, overwrite the pipeline's own noise with ``start``."""
        first = True

        def before(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal first
            if first:
                args[0].copy_(start)  # in place: the tensor is the pipeline's latents
                first = False
            self.rows += len(args[0])

        handle = network.register_forward_pre_hook(before)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _kept_last(scheduler: Any) -> Iterator[list[Tensor]]:
    """Collect what ``step`` returns: pipelines clip and rescale it before they hand it on."""
    step = scheduler.step
    last: list[Tensor] = []

    def keeping(*args: Any, **kwargs: Any) -> Any:
        out = step(*args, **kwargs)
        last[:] = [out[0]]
        return out

    scheduler.step = keeping
    try:
        yield last
    finally:
        del scheduler.step


def make_scheduler(config: Any, cell: Cell) -> Any:
    """PathlineScheduler with a training schedule from a diffusers config, and the cell's method and grid.

    Clipping is left out, as it is in `sample` and in the converged reference.
    """
    from pathline.samplers.schedulers import PathlineScheduler

    settings: dict[str, Any] = {"seed": cell.seed}
    if cell.table_file is None:
        settings |= {
            "method": cell.method.name,
            "options": dict(cell.method.options),
            "grid": cell.grid.name,
            "grid_options": dict(cell.grid.options),
        }
    else:
        settings["table"] = str(cell.table_file)
    return PathlineScheduler.from_config(config, pathline=settings, clip_sample=False, thresholding=False)
