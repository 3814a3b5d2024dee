"""What a run tells while it goes on: a JSON line per interval, trackers, a progress bar, sentences."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.samplers.files import replacing

from .options import TrainOptions

LOG_FILE = "log.jsonl"
LEVELS = 5
_RECENT = 50
_PICTURES: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}
"""Trackers of accelerate that take arrays (N, H, W, C), with what each must be told."""


class Progress:
    """A progress bar, or nothing where none is shown."""

    def __init__(self, bar: Any, log: RunLog) -> None:
        self._bar = bar
        self._log = log

    def advance(self, step: int, loss: float) -> None:
        """Count one optimiser step with its loss."""
        self._log.count(loss)
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix(loss=f"{self._log.recent_loss:.4f}", refresh=False)


class RunLog:
    """Log of one run; lines are written, and sentences printed, by the main process only.

    Parameters
    ----------
    folder : Path
        Where log.jsonl stands.
    accelerator : accelerate.Accelerator
    tracked : bool
        Whether trackers were set up.
    """

    def __init__(self, folder: Path, accelerator: Any, tracked: bool) -> None:
        self.file = folder / LOG_FILE
        self.accelerator = accelerator
        self.tracked = tracked
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._notes: dict[str, Any] = {}
        self._since: list[float] = []
        self._level_sum = torch.zeros(LEVELS, dtype=torch.float64)
        self._level_count = torch.zeros(LEVELS, dtype=torch.float64)
        self._clock = time.monotonic()
        self._bar: Any = None

    @property
    def recent_loss(self) -> float:
        """Mean loss of the latest steps (NaN before the first)."""
        return sum(self._recent) / len(self._recent) if self._recent else float("nan")

    def start(self, step: int, options: TrainOptions) -> None:
        """Open the log for a run that goes on after `step`: lines of later steps are dropped."""
        if self.accelerator.is_main_process:
            kept = [line for line in self._lines() if _step_of(line) <= step] if step else []
            with replacing(self.file) as stream:
                stream.writelines(kept)
        if self.tracked:
            given = {key: value for key, value in options.to_dict().items() if value is not None}
            plain = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in given.items()}
            self.accelerator.init_trackers("pathline", config=plain)
        self._clock = time.monotonic()

    def _lines(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").splitlines(keepends=True) if self.file.is_file() else []

    def count(self, loss: float) -> None:
        """Take in the loss of one step."""
        self._recent.append(loss)
        self._since.append(loss)

    def note(self, **values: Any) -> None:
        """Keep values for the next line; the latest of each name is written."""
        self._notes.update(values)

    def note_levels(self, losses: Tensor, times: Tensor) -> None:
        """Add losses of samples to the means over five equal intervals of time; float64 (B,), on the CPU."""
        place = (times * LEVELS).long().clamp(0, LEVELS - 1)
        self._level_sum.index_add_(0, place, losses)
        self._level_count.index_add_(0, place, torch.ones_like(place, dtype=torch.float64))

    def write(self, step: int, rate: float, images: int) -> None:
        """Write one line for the steps since the last one, averaged over all processes.

        An interval of time without a sample has no mean: null in the file, and nothing for the trackers.
        """
        now = time.monotonic()
        sums = torch.cat([self._level_sum, self._level_count, torch.tensor([sum(self._since)]).double()])
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums.float().to(self.accelerator.device), reduction="sum").double().cpu()
        count = len(self._since) * self.accelerator.num_processes
        means = (sums[:LEVELS] / sums[LEVELS:-1].clamp(min=1)).tolist()
        levels = [mean if seen else None for mean, seen in zip(means, sums[LEVELS:-1].tolist(), strict=True)]
        line = {
            "step": step,
            "loss": float(sums[-1]) / max(count, 1),
            "loss_by_time": [None if value is None else round(value, 6) for value in levels],
            "learning_rate": rate,
            **{key: round(float(value), 6) for key, value in self._notes.items()},
            "images_per_second": round(len(self._since) * images / max(now - self._clock, 1e-9), 1),
        }
        if self.accelerator.is_main_process:
            with open(self.file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        if self.tracked:
            scalars = {key: value for key, value in line.items() if isinstance(value, float)}
            by_level = {f"loss/level-{k}": value for k, value in enumerate(levels) if value is not None}
            self.accelerator.log({**scalars, **by_level}, step=step)
        self._since, self._clock = [], now
        self._level_sum.zero_()
        self._level_count.zero_()

    def show(self, step: int, sheet: Any) -> None:
        """Send a picture (PIL, RGB) to the trackers that take pictures; on the main process."""
        pixels = np.asarray(sheet)[None]
        for tracker in self.accelerator.trackers if self.tracked else ():
            if tracker.name in _PICTURES:
                tracker.log_images({"preview": pixels}, step=step, **_PICTURES[tracker.name])

    @contextmanager
    def progress(self, options: TrainOptions, first: int) -> Iterator[Progress]:
        """Show a bar on the local main process, if the options want one."""
        if not (options.progress and self.accelerator.is_local_main_process):
            yield Progress(None, self)
            return
        from tqdm.auto import tqdm

        with tqdm(total=options.max_train_steps, initial=first, desc="train", unit="step") as bar:
            self._bar = bar
            try:
                yield Progress(bar, self)
            finally:
                self._bar = None

    def say(self, sentence: str) -> None:
        """Print a sentence on the main process, above a bar if one is shown."""
        if not self.accelerator.is_main_process:
            return
        if self._bar is None:
            print(sentence, flush=True)
        else:
            self._bar.write(sentence)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a crash is dropped
