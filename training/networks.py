"""Networks from diffusers, by name and configuration, and how they are called with labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pathline.interpolants import unknown_name

NETWORKS = ("unet", "dit")

_UNET_CHANNELS = {8: (24, 48), 16: (32, 64, 128), 28: (64, 128), 32: (64, 128, 128), 64: (64, 128, 192, 256)}
_UNET_LAYERS = {8: 1, 16: 1}
_ATTENTION_SIDE = 8


def default_config(network: str, shape: tuple[int, int, int], num_classes: int | None = None) -> dict[str, Any]:
    """Configuration of a small network for images of this shape, for diffusers' `from_config`.

    Parameters
    ----------
    network : {"unet", "dit"}
    shape : (C, H, W)
        Square images.
    num_classes : int, optional
        Makes the network class-conditional, with one further class (number `num_classes`) for "no label".

    Raises
    ------
    ValueError
        If the network is unknown or the shape does not suit it.
    """
    if network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS)
    channels, height, width = shape
    if height != width:
        raise ValueError(f"networks take square images, got {height}x{width}")
    if network == "dit":
        return _dit_config(channels, height, num_classes)
    return _unet_config(channels, height, num_classes)


def _unet_config(channels: int, side: int, num_classes: int | None) -> dict[str, Any]:
    preset = max((size for size in _UNET_CHANNELS if size <= side), default=8)
    widths = list(_UNET_CHANNELS[preset])
    while len(widths) > 1 and side % 2 ** (len(widths) - 1):
        widths.pop()
    sides = [side // 2**level for level in range(len(widths))]
    attention = [here <= _ATTENTION_SIDE and level > 0 for level, here in enumerate(sides)]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": side,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": widths,
        "layers_per_block": _UNET_LAYERS.get(preset, 2),
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        "norm_num_groups": 8,
        "attention_head_dim": widths[0],
        "num_class_embeds": None if num_classes is None else num_classes + 1,
    }


def _dit_config(channels: int, side: int, num_classes: int | None) -> dict[str, Any]:
    patch = next((p for p in (4, 2, 1) if side % p == 0 and side // p >= 4), 1)
    small = side <= 16
    return {
        "_class_name": "DiTTransformer2DModel",
        "sample_size": side,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": min(patch, 2) if small else patch,
        "num_layers": 4 if small else 6,
        "num_attention_heads": 4,
        "attention_head_dim": 32 if small else 64,
        # diffusers adds the class for "no label" by itself
        "num_embeds_ada_norm": 1 if num_classes is None else num_classes,
    }


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Make the diffusers network that a configuration describes.

    Raises
    ------
    ValueError
        If the class or a key is unknown, an attention would have no head, or diffusers refuses the values.
    """
    import inspect

    import diffusers

    values = dict(config)
    kind = values.pop("_class_name", None)
    if kind not in ("UNet2DModel", "DiTTransformer2DModel"):
        raise unknown_name("network class", kind, ["UNet2DModel", "DiTTransformer2DModel"])
    cls = getattr(diffusers, kind)
    signature = inspect.signature(cls.__init__).parameters
    known = [name for name in signature if name != "self"]
    for key in values:
        if key not in known:
            raise unknown_name(f"setting of {kind}", key, known)
    _check_heads(kind, {name: entry.default for name, entry in signature.items()} | values)
    try:
        network: nn.Module = cls(**values)
    except Exception as error:  # diffusers asserts, divides by zero and indexes on bad values
        raise ValueError(f"{kind} cannot be built from {values}: {error}") from error
    prepare_network(network)
    return network


def _check_heads(kind: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError if an attention has no head: diffusers builds a UNet then, which divides by zero when called."""
    size = values["attention_head_dim"]
    if size is not None and not (isinstance(size, int) and size >= 1):
        raise ValueError(f"attention_head_dim of {kind} must be a whole number from 1, got {size!r}")
    if kind != "UNet2DModel" or size is None:
        return
    widths = list(values["block_out_channels"])
    sides = (values["down_block_types"], list(values["up_block_types"])[::-1])
    attending = [
        width for blocks in sides for width, block in zip(widths, blocks, strict=False) if "Attn" in str(block)
    ]
    if values.get("add_attention", True):
        attending += widths[-1:]
    if attending and min(attending) < size:
        raise ValueError(
            f"attention_head_dim={size} of {kind} must be at most {min(attending)}, the channels of the narrowest "
            f"block with attention in block_out_channels={widths}"
        )


def prepare_network(network: nn.Module) -> None:
    """Switch off what a network would draw at random by itself in training: a DiT's own label dropping."""
    for module in network.modules():
        if type(module).__name__ == "LabelEmbedding":
            module.dropout_prob = 0.0  # type: ignore[assignment]


def label_count(network: nn.Module) -> int | None:
    """Number of label embeddings a network has, the one for "no label" included; None if it takes no labels."""
    config: Any = network.config
    if config.get("_class_name", type(network).__name__) == "DiTTransformer2DModel":
        return int(config["num_embeds_ada_norm"]) + 1
    count = config.get("num_class_embeds")
    return None if count is None else int(count)


class LabelledNetwork:
    """A diffusers network as `network(x, label_of_time, class_labels=None, condition=None, free=None) -> Tensor`.

    Networks that take labels get the last one, "no label", when none are given; networks that take none
    refuse them.

    Parameters
    ----------
    network : nn.Module
        The module that is called; possibly wrapped for several processes.
    labels : int, optional
        Number of label embeddings, from `label_count`.
    conditioned : bool
        Whether the network sees an image beside the state.
    """

    def __init__(self, network: nn.Module, labels: int | None, conditioned: bool = False) -> None:
        self.network = network
        self.labels = labels
        self.conditioned = conditioned

    def __call__(
        self,
        x: Tensor,
        time: Tensor,
        class_labels: Tensor | None = None,
        condition: Tensor | None = None,
        free: Tensor | None = None,
    ) -> Tensor:
        """Raw output of the network, float32 or wider.

        Parameters
        ----------
        x : Tensor (B, C, H, W)
        time : Tensor (B,)
        class_labels : int64 Tensor (B,), optional
        condition : Tensor (B, K, H, W)
            Further channels of the input, for a network that sees an image.
        free : Tensor (B, C, H, W), optional
            Factor of the output, 0 where the state does not move.
        """
        if self.conditioned != (condition is not None):
            needs = "needs an" if self.conditioned else "takes no"
            raise ValueError(f"this network {needs} image beside the state (condition, a tensor of channels)")
        if condition is not None:
            x = torch.cat([x, condition.to(x)], 1)
        if self.labels is None:
            if class_labels is not None:
                raise ValueError("this network takes no class labels: it was built without classes")
            output = self.network(x, time)
        else:
            if class_labels is None:
                class_labels = torch.full((len(x),), self.labels - 1, device=x.device)
            output = self.network(x, time, class_labels=class_labels.to(x.device))
        result: Tensor = output.sample
        result = result.to(torch.promote_types(result.dtype, torch.float32))
        return result if free is None else result * free.to(result)
