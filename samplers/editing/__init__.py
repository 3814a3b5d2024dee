"""Editing: inversion, image to image, in-painting and dragging, as tables and hooks of the one loop."""

from .chains import editing_nodes, editing_table, forward_chain, renoise
from .drag import drag_scales, drag_segments, move_patches, sde_drag
from .image_to_image import sdedit
from .inpainting import KnownChain, KnownRegion, repaint_table, repaint_walk
from .ode_inversion import inversion_table, invert_ode
from .sde_inversion import Inversion, cycle_diffusion, invert_sde

__all__ = [
    "Inversion",
    "KnownChain",
    "KnownRegion",
    "cycle_diffusion",
    "drag_scales",
    "drag_segments",
    "editing_nodes",
    "editing_table",
    "forward_chain",
    "inversion_table",
    "invert_ode",
    "invert_sde",
    "move_patches",
    "renoise",
    "repaint_table",
    "repaint_walk",
    "sde_drag",
    "sdedit",
]
