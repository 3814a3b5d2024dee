"""Tiny pipelines of the real diffusers classes: random small networks, no text encoders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

BATCH = 2
WIDTH = 8  # of the text embeddings
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
Arguments = dict[str, Any]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def built(cls: Any, **config: Any) -> Any:
    """A network with the same random weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**config).eval()


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def image_unet() -> Any:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    size = {"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return built(diffusers.UNet2DModel, in_channels=3, out_channels=3, **size, **blocks)


@functools.cache
def text_unet(channels: int = 4, **extra: Any) -> Any:
    return built(
        diffusers.UNet2DConditionModel,
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        **extra,
    )


@functools.cache
def image_vae(**extra: Any) -> Any:
    """Halves the size of an image."""
    return built(
        diffusers.AutoencoderKL,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        **extra,
    )


def flow_vae() -> Any:
    return image_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)


@functools.cache
def sd3_transformer() -> Any:
    heads = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    widths = {"joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "pos_embed_max_size": 8}
    return built(
        diffusers.SD3Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        **heads,
        **widths,
    )


@functools.cache
def flux_transformer() -> Any:
    heads = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    widths = {"joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "axes_dims_rope": (4, 4, 8)}
    return built(
        diffusers.FluxTransformer2DModel,
        patch_size=1,
        in_channels=16,
        guidance_embeds=True,
        **heads,
        **widths,
    )


@functools.cache
def dit_transformer() -> Any:
    """Twice the channels: the second half is a learned variance, which the pipeline drops."""
    heads = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "num_embeds_ada_norm": 1000}
    return built(diffusers.DiTTransformer2DModel, in_channels=4, out_channels=8, sample_size=8, patch_size=2, **heads)


@functools.cache
def wan_transformer() -> Any:
    return built(
        diffusers.WanTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )


@functools.cache
def wan_vae() -> Any:
    return built(diffusers.AutoencoderKLWan, base_dim=2, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


@functools.cache
def ltx_transformer() -> Any:
    return built(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        num_layers=1,
    )


@functools.cache
def ltx_vae() -> Any:
    one, none = (1, 1, 1, 1, 1), (False,) * 5
    return built(
        diffusers.AutoencoderKLLTXVideo,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=one,
        decoder_layers_per_block=one,
        decoder_inject_noise=none,
    )


# --- pipelines ---------------------------------------------------------------------------------------------------


def uncond_first(outputs: list[Tensor], scale: float) -> Tensor:
    free, bound = outputs[0].chunk(2)
    return free + scale * (bound - free)


def cond_first(outputs: list[Tensor], scale: float) -> Tensor:
    bound, free = outputs[0][:, :4].chunk(2)
    return free + scale * (bound - free)


def two_calls(outputs: list[Tensor], scale: float) -> Tensor:
    return outputs[1] + scale * (outputs[0] - outputs[1])


def plain(outputs: list[Tensor], scale: float) -> Tensor:
    return outputs[0]


@dataclass(frozen=True)
class Tiny:
    """One pipeline class, small enough for a test.

    Attributes
    ----------
    make : scheduler -> pipeline
    stock : the scheduler it usually ships with
    network : its attribute that holds the denoiser
    arguments : of a run, without start, steps and generator
    shape : of the latents, as the pipeline takes them; None where it draws them itself, from its generator
    drawn : their shape in this case
    guide : network outputs of one evaluation, guidance scale -> what the scheduler is given
    calls : network calls for one evaluation
    unit : what the network is told, in timesteps
    """

    make: Callable[[Any], Any]
    stock: Callable[[], Any]
    network: str
    arguments: Callable[[], Arguments]
    shape: tuple[int, ...] | None
    guide: Callable[[list[Tensor], float], Tensor]
    drawn: tuple[int, ...] = ()
    scale: float = 3.0
    calls: int = 1
    unit: float = 1.0

    def start(self, seed: int = 4) -> Tensor:
        """The latents of a run with this seed."""
        return draw(*(self.shape or self.drawn), seed=seed)

    def start_arguments(self, seed: int = 4) -> Arguments:
        return {"generator": seeded(seed)} if self.shape is None else {"latents": self.start(seed)}


def stock_ddim() -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False, **LATENT)


def embeds(*names: str) -> Arguments:
    """Embeddings of a prompt and of its negative; the pooled ones too where asked for."""
    found: Arguments = {}
    for seed, name in enumerate(names):
        shape = (BATCH, WIDTH) if "pooled" in name else (BATCH, 5, WIDTH)
        found[name] = draw(*shape, seed=seed + 50)
    return found


def sd(cls: Any = diffusers.StableDiffusionPipeline, channels: int = 4) -> Callable[[Any], Any]:
    return lambda scheduler: cls(
        image_vae(), None, None, text_unet(channels), scheduler, None, None, requires_safety_checker=False
    )


TEXT = ("prompt_embeds", "negative_prompt_embeds")
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
IMAGE = {"height": 16, "width": 16, "output_type": "latent"}
GUIDED = {**IMAGE, "guidance_scale": 3.0}


def sdxl(scheduler: Any) -> Any:
    unet = text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=56
    )
    return diffusers.StableDiffusionXLPipeline(
        image_vae(), None, None, None, None, unet, scheduler, add_watermarker=False
    )


def sd3(scheduler: Any) -> Any:
    nothing = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    return diffusers.StableDiffusion3Pipeline(
        transformer=sd3_transformer(), scheduler=scheduler, vae=flow_vae(), **nothing
    )


def flux(cls: Any = diffusers.FluxPipeline) -> Callable[[Any], Any]:
    return lambda scheduler: cls(scheduler, flow_vae(), None, None, None, None, flux_transformer())


def video_arguments(**sizes: int) -> Arguments:
    return {**embeds(*TEXT), **sizes, "output_type": "latent", "guidance_scale": 3.0}


def ltx_arguments() -> Arguments:
    masks = {f"{name}_attention_mask": torch.ones(BATCH, 5) for name in ("prompt", "negative_prompt")}
    return {**video_arguments(height=64, width=64, num_frames=9), **masks}


def flow(**config: Any) -> Callable[[], Any]:
    return lambda: diffusers.FlowMatchEulerDiscreteScheduler(**config)


TINY: dict[str, Tiny] = {
    "ddpm": Tiny(
        make=lambda scheduler: diffusers.DDPMPipeline(image_unet(), scheduler),
        stock=lambda: diffusers.DDPMScheduler(clip_sample=False),
        network="unet",
        arguments=lambda: {"batch_size": BATCH, "output_type": "np"},
        shape=None,
        guide=plain,
        drawn=(BATCH, 3, 8, 8),
    ),
    "dit": Tiny(
        make=lambda scheduler: diffusers.DiTPipeline(dit_transformer(), image_vae(), scheduler),
        stock=lambda: diffusers.DDIMScheduler(clip_sample=False),
        network="transformer",
        arguments=lambda: {"class_labels": [1, 2], "guidance_scale": 3.0, "output_type": "np"},
        shape=None,
        guide=cond_first,
        drawn=(BATCH, 4, 8, 8),
    ),
    "sd": Tiny(sd(), stock_ddim, "unet", lambda: {**embeds(*TEXT), **GUIDED}, (BATCH, 4, 8, 8), uncond_first),
    "sdxl": Tiny(
        sdxl,
        lambda: diffusers.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **LATENT),
        "unet",
        lambda: {**embeds(*TEXT, *POOLED), **GUIDED},
        (BATCH, 4, 8, 8),
        uncond_first,
    ),
    "sd3": Tiny(
        sd3,
        flow(shift=3.0),
        "transformer",
        lambda: {**embeds(*TEXT, *POOLED), **GUIDED},
        (BATCH, 4, 8, 8),
        uncond_first,
    ),
    "flux": Tiny(
        flux(),
        flow(shift=3.0, use_dynamic_shifting=True),
        "transformer",
        lambda: {**embeds("prompt_embeds", "pooled_prompt_embeds"), **IMAGE},
        (BATCH, 16, 16),
        plain,
        unit=1 / 1000,
    ),
    "wan": Tiny(
        lambda scheduler: diffusers.WanPipeline(None, None, wan_vae(), scheduler, wan_transformer()),
        flow(shift=3.0),
        "transformer",
        lambda: video_arguments(height=32, width=32, num_frames=5),
        (BATCH, 16, 2, 4, 4),
        two_calls,
        calls=2,
    ),
    "ltx": Tiny(
        lambda scheduler: diffusers.LTXPipeline(scheduler, ltx_vae(), None, None, ltx_transformer()),
        flow(use_dynamic_shifting=True),
        "transformer",
        ltx_arguments,
        (BATCH, 8, 8),
        uncond_first,
    ),
}


def absent(tiny: Tiny) -> dict[str, None]:
    """What the pipeline lacks, as `from_pretrained` must be told."""
    return {name: None for name, part in tiny.make(tiny.stock()).components.items() if part is None}
