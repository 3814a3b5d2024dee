"""What a source is sampled with when nobody names a method."""

from __future__ import annotations

from pathline.samplers.defaults import GUIDED, default_settings

from .settings import Spec
from .sources import Source


def untuned_choice(
    source: Source, nfe: int, *, guidance: float | None = None, analytic: bool = True
) -> tuple[Spec, Spec]:
    """Method and grid that `pathline.samplers.sample` chooses for a budget, as far as they suit the source.

    An analytic first step takes the start for a standard normal that knows nothing of the data, which it is not where
    noise and data were coupled; a flow between other laws is followed by Heun's method in equal steps.

    Parameters
    ----------
    source : Source
    nfe : int
    guidance : float, optional
    analytic : bool
        Whether there is a place for an analytic first step; pipelines of flow models have none.
    """
    if source.flow_only:
        return Spec("heun" if nfe > 1 else "euler", {}), Spec("time", {})
    found = default_settings(
        nfe,
        source.path,
        prediction=source.prediction,
        guided=guidance is not None and guidance > GUIDED,
        analytic=analytic and not source.coupled,
    )
    return Spec(found.method, dict(found.options)), Spec(found.grid, dict(found.grid_options))
