"""Plots of a finished run: loss and gradient norm over the steps, and both by noise level."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathline.samplers.files import replacing

from .files import write_json
from .run_log import LEVELS, LOG_FILE
from .tasks import Samples, Task

PLOTS = "plots"


def gradient_by_time(task: Task, model: Callable[..., Tensor], network: nn.Module, samples: Samples) -> list[float]:
    """Norm of the gradient of the mean loss in each of the five equal intervals of time, with the present weights.

    Parameters
    ----------
    task : Task
    model : callable
        From `task.wrap`.
    network : nn.Module
        Inside the model; its gradients are left as they are.
    samples : Samples
        All are moved to each interval in turn, spread evenly over it.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    count = len(samples.data)
    low, high = task.interval
    norms = []
    training = network.training
    network.eval()  # the same weights give the same plot
    for level in range(LEVELS):
        times = (level + (torch.arange(count, dtype=torch.float64) + 0.5) / count) / LEVELS
        losses = task.losses(model, samples._replace(times=times.clamp(low, high)))
        gradients = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
        squares = [g.double().square().sum() for g in gradients if g is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))
    network.train(training)
    return norms


def write_plots(folder: Path, gradients: list[float]) -> str | None:
    """Write plots/training.png, and the gradient norms by time as plots/gradients.json, from the log of a run.

    Returns a sentence if there is no matplotlib to draw with, else None.
    """
    finite = [norm if math.isfinite(norm) else None for norm in gradients]
    write_json(folder / PLOTS / "gradients.json", {"gradient_norm_by_time": finite})
    lines = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plots were drawn: pip install 'pathline[report]'"
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes: Any = figure.subplots(2, 2)
    steps = [line["step"] for line in lines]
    labels = [f"time {k / LEVELS:g} to {(k + 1) / LEVELS:g}" for k in range(LEVELS)]
    axes[0, 0].plot(steps, [line["loss"] for line in lines], color="black")
    axes[0, 0].set_title("loss")
    for level, label in enumerate(labels):
        # an interval without a sample since the last line has no mean
        means = [line["loss_by_time"][level] for line in lines]
        values = [float("nan") if mean is None else mean for mean in means]
        axes[0, 1].plot(steps, values, label=label)
    axes[0, 1].set_title("loss by time (0 noise, 1 data)")
    axes[0, 1].legend(fontsize="small")
    axes[1, 0].plot(steps, [line.get("grad_norm", float("nan")) for line in lines], color="black")
    axes[1, 0].set_title("norm of the gradient")
    axes[1, 1].bar(range(LEVELS), gradients, tick_label=[label.removeprefix("time ") for label in labels])
    axes[1, 1].set_title("norm of the gradient by time, last weights")
    for axis in axes.flat:
        axis.set_yscale("log")
    for axis in (axes[0, 0], axes[0, 1], axes[1, 0]):
        axis.set_xlabel("step")
    with replacing(folder / PLOTS / "training.png", "wb") as stream:
        figure.savefig(stream, format="png", dpi=110)
    return None
