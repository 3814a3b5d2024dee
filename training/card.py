"""What a run says of itself: on the screen as it begins, and in pathline.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .data import ImageSet
from .options import TrainOptions
from .resolve import degradation_config
from .tasks import Task
from .vector_conditions import vectors_of


def run_card(options: TrainOptions, task: Task, data: ImageSet, progress: Mapping[str, Any]) -> dict[str, Any]:
    """Content of pathline.json: what was trained, on what, and how.

    `progress` has steps, images_per_step, weights ("ema" or "last") and labels (label embeddings or None).
    """
    rest = dict(progress)
    labels = rest.pop("labels")
    return {
        **task.card(),
        "takes_noise": task.takes_noise,
        "coupled": options.coupling != "independent" or options.reflow_from is not None,
        "classes": None if labels is None else list(data.classes),
        "null_label": labels - 1 if labels is not None and options.class_dropout > 0 else None,
        "image_condition": degradation_config(options),
        "vector_condition": vectors_of(data).shape[1] if options.vector_conditional else None,
        "skip_scale": options.skip_scale,
        "skip_scaling": options.skip_scaling,
        "latents": None if options.latents is None else {"scale": options.latent_scale, "shift": options.latent_shift},
        "data": {
            "name": options.dataset_name or options.train_data_dir or options.latents,
            "split": options.split,
            "images": len(data),
            "shape": list(data.shape),
            "resolution": options.resolution,
            "center_crop": options.center_crop,
        },
        "training": {**rest, "objective": task.config(), "options": options.to_dict()},
    }


def opening_words(options: TrainOptions, size: str, task: Task, data: ImageSet, rate: str) -> list[str]:
    """Sentences for the beginning: what is trained on what, and what to know of it."""
    words = [f"{options.network} with {size} on {len(data)} images of {data.name}: {task.title}, {rate}"]
    if skipped := getattr(data, "skipped", ()):
        words.append(f"{len(skipped)} files were skipped, they cannot be read: {', '.join(skipped[:10])}")
    if task.stock() is None:
        words.append(
            f"no stock diffusers scheduler samples a network of {task.title}: the result opens with "
            "pathline.training.load_pipeline only"
        )
    told = options.class_conditional or options.vector_conditional
    if told and options.coupling in ("ot", "sinkhorn", "newton"):
        words.append(
            f"warning: coupling {options.coupling!r} ties the noise to the condition, which sampling cannot reproduce: "
            "conditional samples will be skewed; use --coupling c2ot"
        )
    if options.coupling == "c2ot" and not told:
        words.append(
            "warning: coupling 'c2ot' keeps the noise of each class apart, but the network is not told the class: use "
            "--class_conditional, or --coupling ot, which is straighter"
        )
    return words
