"""The training loop: accelerate around a pure function from (seed, step) to a gradient."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathline.samplers import NonFiniteError

from .batches import BatchPlan
from .bucket_set import BucketBatches, BucketSet
from .card import opening_words, run_card
from .checkpoints import (
    checkpoint_folder,
    find_checkpoint,
    finish_checkpoint,
    list_checkpoints,
    read_state,
    remove_old,
    temporary_folder,
)
from .data import Batch, fetch_batches
from .export import export_pipeline
from .files import write_json
from .fingerprint import fingerprint
from .hub import push_folder, reserve_repository
from .interrupts import StopRequest, stop_request
from .loss_uncertainty import LossUncertainty, balanced
from .networks import LabelledNetwork, label_count
from .options import TrainOptions
from .outcome import TrainingInterruptedError, TrainResult
from .plots import gradient_by_time, write_plots
from .power_averages import SNAPSHOTS, PowerAverages, SnapshotWriter
from .previews import check_preview, draw_preview, draw_sheet, save_preview
from .reflow import PAIRS, PairSet
from .resolve import sees_more
from .run_log import RunLog
from .samples import SampleMaker
from .setup import (
    check_trackers,
    make_average,
    make_data,
    make_lr_schedule,
    make_network,
    make_optimizer,
    make_task,
)
from .soundness import SoundnessCheck
from .tasks import Preparation, Samples
from .tensor_files import written_or_removed

SNAPSHOTS_OF_A_RUN = 32
_TRIED = 16


class Trainer:
    """One training run; `train_model` makes one.

    Parameters
    ----------
    options : TrainOptions
        Resolved; they are not changed.
    """

    def __init__(self, options: TrainOptions) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.options = options = replace(options)
        self.folder = Path(options.output_dir)
        self.task = make_task(options)
        self.task.times(torch.tensor([0.5], dtype=torch.float64))  # refuses an unsuitable density now
        if options.latents is not None:
            options.preview_images = 0  # latents are not seen without their autoencoder
        if options.preview_images:  # a sampler that cannot run is refused now, not after training
            check_preview(options, self.task)
        trackers = check_trackers(options.report_to)
        self.data = make_data(options)
        network = make_network(options, self.data)
        if options.mixed_precision == "fp16" and (options.cpu or not torch.cuda.is_available()):
            raise ValueError("mixed_precision 'fp16' needs a GPU; use bf16 or no")
        self.accelerator = Accelerator(
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            mixed_precision=options.mixed_precision,
            log_with=trackers or None,
            project_dir=str(self.folder / options.logging_dir),
            cpu=options.cpu,
            # buffers are constants; sending them would tie the number of calls of all processes together
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self._plan_batches()
        self.labels = label_count(network) if options.class_conditional else None
        self.samples = SampleMaker(options, self.data, self.plan, self.task, self.labels)
        network.to(self.accelerator.device)
        self.average = make_average(options, network)
        uncertainty = LossUncertainty(options.seed).to(self.accelerator.device) if options.loss_uncertainty else None
        optimizer = make_optimizer(options, network, uncertainty)
        self.lr_schedule = make_lr_schedule(options, optimizer)
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.uncertainty = None if uncertainty is None else self.accelerator.prepare(uncertainty)
        self.trained = [self.network] if uncertainty is None else [self.network, self.uncertainty]
        self.bare_network: nn.Module = self.accelerator.unwrap_model(self.network)
        self.model = self._model_of(self.network)
        self.step = 0
        self.snapshots: SnapshotWriter | None = None
        self.repository: str | None = None
        scaled = options.mixed_precision == "fp16"
        self.sound = SoundnessCheck(self.task, self.folder, scaled)
        self.fingerprint = fingerprint(self.data, look=not isinstance(self.data, PairSet))  # pairs are drawn later
        self.log = RunLog(self.folder, self.accelerator, bool(trackers))

    def _plan_batches(self) -> None:
        options = self.options
        assert options.train_batch_size is not None
        parts = (options.train_batch_size, self.accelerator.num_processes, options.gradient_accumulation_steps)
        if isinstance(self.data, BucketSet):
            self.data = self.data.with_at_least(math.prod(parts))
            self.plan: BatchPlan = BucketBatches(self.data, *parts, options.seed)
        else:
            self.plan = BatchPlan(len(self.data), *parts, options.seed)
        if options.max_train_steps is None:
            assert options.num_epochs is not None
            options.max_train_steps = options.num_epochs * math.ceil(len(self.data) / self.plan.global_batch)
            options.num_epochs = None  # config.json says one of the two, and can be given again

    def _model_of(self, network: nn.Module) -> Any:
        labels = label_count(self.accelerator.unwrap_model(network))
        labelled = LabelledNetwork(network, labels, conditioned=sees_more(self.options))
        return self.task.wrap(labelled)

    def run(self) -> TrainResult:
        """Train from the beginning or a checkpoint to the last step, then write the result."""
        assert self.options.max_train_steps is not None
        began = time.monotonic()
        self._prepare_folder()
        if self.options.push_to_hub and self.accelerator.is_main_process:
            self.repository = reserve_repository(self.folder, self.options.hub_model_id)
        self._resume()
        weights = sum(parameter.numel() for parameter in self.bare_network.parameters())
        size = f"{weights / 1e6:.2f} M weights"
        rate = f"{self.plan.global_batch} images a step, on {self.accelerator.device}"
        for sentence in opening_words(self.options, size, self.task, self.data, rate):
            self.log.say(sentence)
        if isinstance(self.data, PairSet):
            self._draw_pairs(self.data)
        self.task.prepare(self._preparation())
        with stop_request() as request, self.log.progress(self.options, self.step) as bar:
            for batches in self._steps():
                loss = self._optimise(batches)
                self.step += 1
                bar.advance(self.step, loss)
                self._after_step(request)
        self._finish()
        return TrainResult(self.folder, self.step, self.log.recent_loss, time.monotonic() - began)

    def _draw_pairs(self, data: PairSet) -> None:
        accelerator = self.accelerator
        share = (accelerator.process_index, accelerator.num_processes)
        data.draw(self.folder / PAIRS, accelerator.device, share, accelerator.wait_for_everyone)

    def _preparation(self) -> Preparation:
        accelerator, seed = self.accelerator, self.options.seed
        first, wait = accelerator.is_main_process, accelerator.wait_for_everyone
        return Preparation(self.folder, self.data, accelerator.device, seed, first, wait, self.log.say)

    def _prepare_folder(self) -> None:
        existing = list_checkpoints(self.folder)
        if existing and self.options.resume_from_checkpoint is None:
            raise ValueError(
                f"output_dir {self.folder} holds {existing[-1].name} of an earlier run; go on with "
                "--resume_from_checkpoint latest, or choose another output_dir"
            )

    def _resume(self) -> None:
        if self.options.resume_from_checkpoint is not None:
            checkpoint = find_checkpoint(self.folder, self.options.resume_from_checkpoint)
            state = read_state(checkpoint, self.options.to_dict(), self._sizes(), self.fingerprint)
            self.accelerator.load_state(str(checkpoint))
            if self.average is not None:
                self.average.load(checkpoint)
            self.lr_schedule.load_state_dict(state["lr_schedule"])
            self.task.load_state_dict(state.get("task", {}))
            self.step = int(state["step"])
        else:
            torch.manual_seed(self.options.seed + self.accelerator.process_index)  # for dropout, if any
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "config.json", self.options.to_dict())
        self.log.start(self.step, self.options)
        self._start_snapshots()

    def _start_snapshots(self) -> None:
        options = self.options
        if isinstance(self.average, PowerAverages) and self.accelerator.is_main_process:
            assert options.max_train_steps is not None
            every = options.ema_snapshot_steps or max(1, options.max_train_steps // SNAPSHOTS_OF_A_RUN)
            self.snapshots = SnapshotWriter(self.folder, self.bare_network, self.card(), every)
            self.snapshots.start(self.step)

    def _sizes(self) -> dict[str, int]:
        """What a checkpoint must have in common with the run that goes on from it, besides the options."""
        return {"images per optimiser step": self.plan.global_batch, "images in the data set": len(self.data)}

    def _steps(self) -> Iterator[list[tuple[Tensor, Batch]]]:
        """Micro-batches of this process, step by step, with their places in the global batch."""
        options, process = self.options, self.accelerator.process_index
        assert options.max_train_steps is not None
        indices = self.plan.index_batches(self.step, options.max_train_steps, process)
        batches = fetch_batches(self.data, indices, options.dataloader_num_workers)
        for _ in range(self.step, options.max_train_steps):
            micros = range(self.plan.accumulation)
            yield [(self.plan.places(micro, process), next(batches)) for micro in micros]

    def _optimise(self, batches: list[tuple[Tensor, Batch]]) -> float:
        """One optimiser step; the mean loss of this process."""
        total, seen = math.nan, []
        for places, batch in batches:
            with self.accelerator.accumulate(*self.trained):
                losses, times = self._losses(places, batch)
                seen.append((times, losses.detach()))
                self.accelerator.backward(self._weighted(losses, times).mean())
                if self.accelerator.sync_gradients:
                    total = self._inspect(seen)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.lr_schedule.step()
        if self.task.adapts:
            self._learn_from(seen)
        if self.average is not None:
            self.average.update(self.bare_network)
            self.log.note(ema_decay=self.average.decay)
        return total

    def _inspect(self, seen: list[tuple[Tensor, Tensor]]) -> float:
        """Clip the gradient of a whole step, refuse it if it is not finite, note what is told; the mean loss."""
        norm: Any = self.accelerator.clip_grad_norm_(self.network.parameters(), self.options.max_grad_norm)
        told = [losses.double() for _, losses in seen] + [
            torch.as_tensor(norm).double().reshape(1).to(seen[0][1].device)
        ]
        *losses, size = torch.cat(told).cpu().split([len(part) for part in told])  # one wait for the device
        values, times, length = torch.cat(losses), torch.cat([times for times, _ in seen]).cpu(), float(size)
        self.sound.before_step(self.step + 1, values, times, length)
        if math.isfinite(length):  # a scaler's overflow is no norm
            self.log.note(grad_norm=length)
        self.log.note_levels(values, times)
        return float(values.mean())

    def _weighted(self, losses: Tensor, times: Tensor) -> Tensor:
        if self.uncertainty is None:
            return losses
        return balanced(losses, self.uncertainty(self.task.path.lam(times).to(losses.device)))

    def _losses(self, places: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of each sample, and its time; everything random is keyed by (seed, step, place)."""
        made = self.samples(self.step, places, batch, self.accelerator.device)
        return self.task.losses(self.model, made), made.times

    def _learn_from(self, seen: list[tuple[Tensor, Tensor]]) -> None:
        """Show the task the times and losses of the whole step, in order of time on any split."""
        parts = (torch.cat(part).to(self.accelerator.device, torch.float64) for part in zip(*seen, strict=True))
        times, losses = (self.accelerator.gather(part) for part in parts)
        order = times.argsort()
        self.task.learn(times[order], losses[order])

    def _after_step(self, request: StopRequest) -> None:
        options, step = self.options, self.step
        assert options.max_train_steps is not None
        last = step == options.max_train_steps
        if step % options.logging_steps == 0 or last:
            self.log.write(step, float(self.lr_schedule.get_last_lr()[0]), self.plan.global_batch)
        stop = self._agreed(request.asked) and not last
        saves = step % options.checkpointing_steps == 0 or last or stop
        draws = options.preview_images > 0 and (
            last or bool(options.preview_steps and step % options.preview_steps == 0)
        )
        snapshot = self.snapshots is not None and self.snapshots.due(step, last)
        if saves or draws or snapshot:
            model = self._model_of(self.bare_network)
            self.sound.before_writing(step, self.bare_network, model, self._some_samples(step - 1, _TRIED))
        if self.snapshots is not None and snapshot:
            assert isinstance(self.average, PowerAverages)
            self.snapshots.write(step, self.average)
        if saves:
            self.save_checkpoint()
        if stop:
            self.accelerator.end_training()
            raise TrainingInterruptedError(
                f"stopped after step {step} of {options.max_train_steps}; go on with --resume_from_checkpoint latest "
                f"(saved in {checkpoint_folder(self.folder, step)})"
            )
        if draws:
            self._preview()

    def _agreed(self, asked: bool) -> bool:
        """Whether any process has been asked to stop; all get the same answer."""
        if self.accelerator.num_processes == 1:
            return asked
        flag = torch.tensor([float(asked)], device=self.accelerator.device)
        total: Any = self.accelerator.reduce(flag, reduction="sum")
        return bool(total.item() > 0)

    def save_checkpoint(self) -> None:
        """Write `checkpoint-<step>` whole, then remove the oldest beyond the limit."""
        temporary, target = temporary_folder(self.folder, self.step), checkpoint_folder(self.folder, self.step)
        with written_or_removed(temporary, target):
            self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                if self.average is not None:
                    self.average.save(temporary)
                state = {
                    "step": self.step,
                    "sizes": self._sizes(),
                    "data": self.fingerprint,
                    "lr_schedule": self.lr_schedule.state_dict(),
                    "task": self.task.state_dict(),
                    "options": self.options.to_dict(),
                }
                finish_checkpoint(temporary, target, state)
        if self.accelerator.is_main_process:
            remove_old(self.folder, self.options.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def _preview(self) -> None:
        if not self.accelerator.is_main_process:
            return
        options, device = self.options, self.accelerator.device
        restored = None
        if sees_more(options):
            restored = self.samples.preview(self.data, options.preview_images, device)
        try:
            with self._final_weights():
                model = self._model_of(self.bare_network)
                images = draw_preview(self.task, model, options, self.data.shape, self.labels, device, restored)
        except NonFiniteError as error:  # the loss is finite, so training may well go on
            self.log.say(f"no preview of step {self.step}: {error}")
            return
        save_preview(self.folder / "previews" / f"step-{self.step:06d}.png", images)
        self.log.show(self.step, draw_sheet(images))

    def _some_samples(self, step: int, most: int) -> Samples:
        """The first samples of the batch of a step, on any process the same."""
        places = torch.arange(min(most, self.plan.global_batch))
        batch = self.data.__getitems__(self.plan.indices(step, places))
        return self.samples(step, places, batch, self.accelerator.device)

    def _plot(self) -> None:
        made = self._some_samples(self.step, self.options.train_batch_size or 1)
        norms = gradient_by_time(self.task, self._model_of(self.bare_network), self.bare_network, made)
        if (problem := write_plots(self.folder, norms)) is not None:
            self.log.say(problem)

    def _final_weights(self) -> Any:
        from contextlib import nullcontext

        return nullcontext() if self.average is None else self.average.applied(self.bare_network)

    def _finish(self) -> None:
        options = self.options
        if self.accelerator.is_main_process:
            with self._final_weights():
                self.sound.check_weights(self.step, self.bare_network)
                name = export_pipeline(self.bare_network, self.folder, self.card())
            if options.plots:
                self._plot()
            self.log.say(f"saved {self.folder} ({name or 'network only'})")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.repository is not None:
            push_folder(self.folder, self.repository, ["checkpoint-*", options.logging_dir, SNAPSHOTS])

    def card(self) -> dict[str, Any]:
        """Content of pathline.json: what was trained, on what, and how."""
        return run_card(self.options, self.task, self.data, self._progress())

    def _progress(self) -> dict[str, Any]:
        return {
            "steps": self.step,
            "images_per_step": self.plan.global_batch,
            "weights": "ema" if self.average is not None else "last",
            "labels": self.labels,
        }
