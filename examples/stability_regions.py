"""Draw the stability regions of Adams–Bashforth and of momentum: python examples/stability_regions.py OUT.png."""

import sys

from pathline.evals.analysis_plots import draw_stability
from pathline.evals.plots import png_bytes, save_png
from pathline.samplers.analysis import stability

SHOWN = {
    "Euler (DDIM)": stability("euler"),
    "AB2": stability("ipndm", order=2),
    "AB3": stability("ipndm", order=3),
    "AB4 (PLMS)": stability("plms", order=4),
    "AB2, heavy ball 0.8": stability("heavy-ball", order=2, beta=0.8),
    "AB4, heavy ball 0.8": stability("heavy-ball", order=4, beta=0.8),
    "AB4, Nesterov 0.8": stability("heavy-ball", order=4, beta=0.8, variant="nesterov"),
    "GHVB 1.8": stability("ghvb", order=1.8),
    "GHVB 3.8": stability("ghvb", order=3.8),
    "Heun": stability("heun"),
}

if __name__ == "__main__":
    for name, found in SHOWN.items():
        print(f"{name:22s} stable on the real axis down to {found.real_limit():.4f}, {found.calls:g} calls per step")
    figure = draw_stability(list(SHOWN.items()), "stability regions, noise/signal as the variable")
    save_png(png_bytes(figure), sys.argv[1] if len(sys.argv) > 1 else "stability.png")
