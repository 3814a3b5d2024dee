"""Every stored output of an official implementation is reproduced to 1e-9 in float64."""

import pytest

from support.goldens import Parity, parities, reproduce

PARITIES = list(parities())


@pytest.mark.parametrize("parity", PARITIES, ids=lambda p: p.golden)
def test_official_output(parity: Parity) -> None:
    ours, official, table = reproduce(parity)
    error = ((ours - official).abs() / official.abs().clamp_min(1)).max()
    assert float(error) < 1e-9
    assert table.frame in ("point_mass", "velocity")


def test_goldens_are_there() -> None:
    families = {p.method for p in PARITIES}
    assert families == {"ddim", "dpm++", "unipc", "ipndm", "euler", "heun"}
    assert len(PARITIES) > 80
