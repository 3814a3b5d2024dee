"""Published samplers that are another one under given options."""

from ..registry import Case, Reference, register_preset
from .bridges import I2SB
from .dpm import K_DIFFUSION
from .singlestep import RES

register_preset(
    "ddpm",
    "ddim",
    "DDPM ancestral sampling: the posterior of the noising process at every step.",
    cases=[Case({}, 1, 1)],
    reference=Reference(
        key="ho2020ddpm",
        authors="Ho, Jonathan and Jain, Ajay and Abbeel, Pieter",
        title="Denoising Diffusion Probabilistic Models",
        year=2020,
        venue="NeurIPS",
        arxiv="2006.11239",
    ),
    eta=1.0,
)
register_preset(
    "euler-ancestral",
    "ddim",
    "Euler ancestral of k-diffusion: Euler to a lower level, then noise.",
    cases=[Case({}, 1, 1), Case({"eta": 0.5}, 1, 1)],
    reference=K_DIFFUSION,
    eta=1.0,
)
register_preset(
    "res-multistep",
    "dpm++",
    "Refined exponential solver, multistep: the last output takes the place of a stage.",
    cases=[Case({}, 2, 2)],
    reference=RES,
    variant="heun",
)
register_preset(
    "i2sb",
    "bridge-posterior",
    "I²SB: posterior steps of a Brownian bridge from the source.",
    cases=[Case({}, 1, 1), Case({"deterministic": True}, 1, 1)],
    reference=I2SB,
)
register_preset(
    "resshift",
    "bridge-posterior",
    "ResShift: posterior steps from the source with noise on it.",
    cases=[Case({}, 1, 1)],
    reference=Reference(
        key="yue2023resshift",
        authors="Yue, Zongsheng and Wang, Jianyi and Loy, Chen Change",
        title="ResShift: Efficient Diffusion Model for Image Super-resolution by Residual Shifting",
        year=2023,
        venue="NeurIPS",
        arxiv="2307.12348",
    ),
    start="node",
)
register_preset(
    "consecutive-bridge",
    "bridge-posterior",
    "Consecutive Brownian bridge (video interpolation): from a neighbouring frame to the one between.",
    cases=[Case({}, 1, 1)],
    reference=Reference(
        key="lyu2024consecutive",
        authors="Lyu, Zonglin and Li, Ming and Jiao, Jianbo and Chen, Chen",
        title="Frame Interpolation with Consecutive Brownian Bridge Diffusion",
        year=2024,
        venue="ACM Multimedia",
        arxiv="2405.05953",
    ),
)
