"""Common objectives seen as evidence lower bounds: each is one weight over log-SNR.

Every regression on a Gaussian path is (1/2) int w(l) E|noise error|^2 dl over the log-SNR l = 2 lam, with w the
product of the per-sample weight, the conversion of the error and the density with which training visits l. If w falls
in l, the objective is an average of negative evidence lower bounds of the data with Gaussian noise added, the noise
drawn by -dw (Kingma and Gao 2023, "Understanding diffusion objectives as the ELBO with simple data augmentation").

`update_page` writes the table of docs/losses.md anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pathline.interpolants import CosinePath, EDMPath, LinearPath, VPPath

from .densities import CosMap, LogitNormal, LogNormalSigma, Mode, Shifted, TimeDensity, UniformTime
from .losses import GaussianObjective
from .weights import (
    P2,
    Debiased,
    EDMMonotonic,
    EDMWeight,
    ELBOWeight,
    InverseNoise,
    LossWeight,
    MinSNR,
    SigmoidWeight,
    UnitWeight,
    Unweighted,
)

BEGIN, END = "<!-- elbo:begin -->", "<!-- elbo:end -->"
SHOWN_LEVELS = (-6.0, -3.0, 3.0, 6.0)
_GRID = (-9.0, 9.0, 721)


@dataclass(frozen=True)
class ELBOEntry:
    """One row of the view.

    Parameters
    ----------
    name : str
    objective : GaussianObjective
    formula : str
        w(l) up to a factor, l the log-SNR and s the logistic function; empty if there is no closed form.
    source : str
    """

    name: str
    objective: GaussianObjective
    formula: str
    source: str

    def weight(self, level: Tensor) -> Tensor:
        """Weight at log-SNRs, relative to w(0), float64."""
        at = torch.cat([torch.zeros(1, dtype=torch.float64), level.to(torch.float64).reshape(-1)])
        weight = self.objective.effective_weight(self.objective.path.time_at(0.5 * at))[1]
        return (weight[1:] / weight[0]).reshape(level.shape)

    @property
    def monotonic(self) -> bool:
        """Whether w falls (or stays) throughout: then the objective is an average of evidence lower bounds."""
        low, high, count = _GRID
        weight = self.weight(torch.linspace(low, high, count, dtype=torch.float64))
        return bool((weight.diff() <= 1e-9 * weight[1:]).all())


def elbo_entries() -> list[ELBOEntry]:
    """Common objectives: on diffusion paths, on the linear path, and with EDM's levels."""
    return [*_diffusion(), *_flow(), *_edm()]


def _diffusion() -> list[ELBOEntry]:
    cosine, vp = CosinePath(), VPPath()

    def noise(weight: LossWeight) -> GaussianObjective:
        return GaussianObjective(cosine, "noise", weight=weight)

    decay = "s(-l) / sqrt(b² + 2(B - b) log(1 + e^-l)), b = 0.1, B = 20"
    return [
        ELBOEntry("ELBO", noise(ELBOWeight()), "1", "Kingma et al. 2021"),
        ELBOEntry("noise, cosine", noise(Unweighted()), "sech(l/2)", "Nichol and Dhariwal 2021"),
        ELBOEntry("noise, VP", GaussianObjective(vp, "noise"), decay, "Ho et al. 2020"),
        ELBOEntry("data, cosine", GaussianObjective(cosine, "data"), "e^-l sech(l/2)", "plain error of the data"),
        ELBOEntry("v, cosine", GaussianObjective(cosine, "v"), "e^(-l/2)", "Salimans and Ho 2022"),
        ELBOEntry("sigmoid, bias 2", noise(SigmoidWeight()), "s(2 - l)", "Kingma and Gao 2023"),
        ELBOEntry("P2, cosine", noise(P2()), "sech(l/2) / (1 + e^l)", "Choi et al. 2022"),
        ELBOEntry("min-SNR-5, cosine", noise(MinSNR()), "sech(l/2) min(1, 5 e^-l)", "Hang et al. 2023"),
        ELBOEntry("debiased, cosine", noise(Debiased(1e9)), "s(-l)", "Yu et al. 2023"),
    ]


def _flow() -> list[ELBOEntry]:
    linear = LinearPath()

    def flow(density: TimeDensity) -> GaussianObjective:
        return GaussianObjective(linear, "velocity", density=density)

    steep = GaussianObjective(linear, "velocity", weight=InverseNoise(1e9))
    sit_velocity = GaussianObjective(linear, "noise", weight=UnitWeight("velocity"))
    sit_likelihood = GaussianObjective(linear, "score", weight=ELBOWeight())
    square, esser = "(1 + e^(-l/2))²", "Esser et al. 2024"
    return [
        ELBOEntry("flow matching", flow(UniformTime()), "e^(-l/2)", "Lipman et al. 2023"),
        ELBOEntry("flow, logit-normal(0, 1)", flow(LogitNormal()), f"e^(-l²/8) {square}", esser),
        ELBOEntry("flow, mode(1.29)", flow(Mode()), "", esser),
        ELBOEntry("flow, cosmap", flow(CosMap()), f"sech(l/2) {square}", esser),
        ELBOEntry("flow, shift 3", flow(Shifted(3.0)), f"sech²(l/4 + log(3)/2) {square}", esser),
        ELBOEntry("flow, sigma_sqrt", steep, "e^(-l/2) (1 + e^(l/2))²", "diffusers' training scripts"),
        ELBOEntry('SiT noise, "velocity" weight', sit_velocity, "e^(-l/2)", "Ma et al. 2024"),
        ELBOEntry('SiT score, "likelihood" weight', sit_likelihood, "1", "Ma et al. 2024"),
        ELBOEntry("InDI", GaussianObjective(linear, "data"), "e^-l sech²(l/4)", "Delbracio and Milanfar 2023"),
    ]


def _edm() -> list[ELBOEntry]:
    def edm(weight: LossWeight) -> GaussianObjective:
        path = EDMPath(sigma_min=1e-3, sigma_max=1e3)  # wide enough for all levels of the table
        return GaussianObjective(path, "data", weight=weight, density=LogNormalSigma())

    return [
        ELBOEntry("EDM", edm(EDMWeight()), "N(l; 2.4, 2.4²) (e^-l + 0.5²)", "Karras et al. 2022"),
        ELBOEntry("EDM, monotonic", edm(EDMMonotonic()), "that of EDM at max(l, peak)", "Kingma and Gao 2023"),
    ]


def elbo_table(entries: Sequence[ELBOEntry] | None = None) -> str:
    """The view as a table in Markdown."""
    levels = torch.tensor(SHOWN_LEVELS, dtype=torch.float64)
    shown = " | ".join(f"w({level:g})" for level in SHOWN_LEVELS)
    lines = [
        f"| objective | path, prediction | weight | time density | w(l), up to a factor | {shown} | falls | source |",
        "|" + "---|" * (7 + len(SHOWN_LEVELS)),
    ]
    for entry in elbo_entries() if entries is None else entries:
        objective = entry.objective
        values = " | ".join(_number(value) for value in entry.weight(levels).tolist())
        formula = f"`{entry.formula}`" if entry.formula else "no closed form"
        lines.append(
            f"| {entry.name} | {objective.path.name}, {objective.prediction} | `{objective.weight.name}` | "
            f"`{objective.density.name}` | {formula} | {values} | {'yes' if entry.monotonic else 'no'} | "
            f"{entry.source} |"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3g}" if 1e-3 <= value < 1e4 else f"{value:.1e}"


def update_page(page: Path) -> None:
    """Write the table between the marks of a page anew.

    Raises
    ------
    ValueError
        If the page lacks a mark.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} has no place for the table: it needs the lines {BEGIN} and {END}")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    page.write_text(f"{before}{BEGIN}\n{elbo_table()}\n{after}")
