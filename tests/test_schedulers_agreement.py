"""Our tables do what diffusers' schedulers do, where those are right; where they are wrong, a script shows it."""

import diffusers
import pytest

from pathline.evals.agreement import (
    DEFECTS,
    MEASURED_WITH,
    MISSING,
    NAMES,
    OUTSIDE,
    Defect,
    Setting,
    compare,
    run_stock,
    settings,
    step_counts,
)
from support.repository import ROOT

SETTINGS = settings()
TOLERANCE = 1e-9
STEPS = (2, 3, 7, 16)
"""Short, odd, and on both sides of the 15 steps at which stock solvers change their last steps."""


@pytest.mark.parametrize("name", NAMES)
def test_sample_of_the_settings_agrees(name: str) -> None:
    members = [s for s in SETTINGS if s.name == name]
    assert members, f"{name} is not compared"
    for index, setting in enumerate(members[:: max(1, len(members) // 8)]):
        steps = next(n for n in STEPS[index % len(STEPS) :] + STEPS[::-1] if n >= setting.first and setting.fits(n))
        found = compare(setting, steps, rounding=index == 0)
        assert found.error < TOLERANCE, setting.label
        if index == 0:
            assert found.rounding < 1e-3  # as released, in float32


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.label)
def test_every_setting_agrees_at_all_steps(setting: Setting) -> None:
    for steps in step_counts(setting):
        found = compare(setting, steps, rounding=False)
        assert found.error < TOLERANCE, (setting.label, steps)


def test_settings_of_a_class_share_out_all_numbers_of_steps() -> None:
    members = [s for s in SETTINGS if s.name == "HeunDiscreteScheduler"]
    met = {n for index, setting in enumerate(members) for n in step_counts(setting, index, 5)}
    assert met == set(range(1, 51))
    assert len(step_counts(members[0], 0, 5)) < 20


def test_a_wrong_weight_is_seen() -> None:
    right = next(s for s in SETTINGS if s.name == "UniPCMultistepScheduler" and s.config.get("solver_type") == "bh2")
    wrong = Setting(right.name, {**right.config, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, right.method,
                    right.options)  # fmt: skip
    assert compare(wrong, 7, rounding=False).error > 1e-4


def test_both_sides_make_the_same_calls() -> None:
    for name in ("DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"):
        setting = next(s for s in SETTINGS if s.name == name and "final_sigmas_type" not in s.config)
        theirs, ours = compare(setting, 6, rounding=False).calls
        assert theirs == ours


def test_other_levels_are_refused() -> None:
    setting = Setting("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, "plms", lambda steps, run: {})
    with pytest.raises(ValueError, match="our table calls the network at"):
        compare(setting, 1)


def test_running_leaves_the_modules_as_they_were() -> None:
    from diffusers.schedulers import scheduling_deis_multistep as module

    before = module.torch, module.np
    run_stock(next(s for s in SETTINGS if s.name == "DEISMultistepScheduler"), 3)
    assert (module.torch, module.np) == before


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.key)
def test_defect_is_reproduced_by_its_script(defect: Defect) -> None:
    assert len(defect.code.strip().splitlines()) <= 15
    assert "pathline" not in defect.code
    if diffusers.__version__ != MEASURED_WITH:
        pytest.skip(f"the defects were measured with diffusers {MEASURED_WITH}")
    assert defect.run().strip()


def test_every_scheduler_of_diffusers_is_accounted_for() -> None:
    known = {*NAMES, *(name for names in OUTSIDE.values() for name in names), *(name.split()[0] for name in MISSING)}
    listed = {name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith(("Flax", "_"))}
    if diffusers.__version__ == MEASURED_WITH:
        assert listed <= known, sorted(listed - known)


def test_the_page_lists_every_class_and_defect() -> None:
    page = (ROOT / "docs" / "diffusers.md").read_text()
    for name in NAMES:
        assert f"| {name} |" in page
    for defect in DEFECTS:
        assert defect.code.strip() in page, f"{defect.key}: run make docs"
