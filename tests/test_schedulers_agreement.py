"""Our tables do what diffusers' schedulers do, where those are right; where they are wrong, a script shows it."""

from typing import Any

import diffusers
import pytest
import torch

from pathline.evals.agreement import (
    DEFECTS,
    MEASURED_WITH,
    MISSING,
    NAMES,
    OUTSIDE,
    Defect,
    Setting,
    agreement,
    compare,
    print_agreement,
    run_stock,
    settings,
    step_counts,
)
from pathline.evals.agreement.stock import output, start_and_noises
from pathline.samplers.schedulers import PathlineScheduler
from support.repository import ROOT

# stock schedulers hand tensors to numpy in ways it deprecates, and warn where scale_model_input was not called
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore:The `scale_model_input`")
SETTINGS = settings()
TOLERANCE = 1e-9
STEPS = (2, 3, 7, 16)
"""Short, odd, and on both sides of the 15 steps at which stock solvers change their last steps."""


@pytest.mark.parametrize("name", NAMES)
def test_sample_of_the_settings_agrees(name: str) -> None:
    members = [s for s in SETTINGS if s.name == name]
    assert members, f"{name} is not compared"
    for index, setting in enumerate(members[:: -(-len(members) // 6)]):
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


def test_command_compares_a_class_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = agreement(["FlowMatchHeunDiscreteScheduler"])
    assert result.verdict == "the same"
    assert result.runs > 40
    print_agreement([result])
    assert "FlowMatchHeun" in capsys.readouterr().out
    with pytest.raises(ValueError, match="did you mean 'HeunDiscreteScheduler'"):
        agreement(["HeunDiscretScheduler"])


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


DROP_INS = (
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction", "timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {"use_exponential_sigmas": True}),
    ("UniPCMultistepScheduler", {"use_beta_sigmas": True}),
    ("LMSDiscreteScheduler", {"timestep_spacing": "linspace"}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("KDPM2DiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {}),
)


@pytest.mark.parametrize(("name", "config"), DROP_INS, ids=str)
def test_from_config_gives_the_sample_of_the_stock_class(name: str, config: dict[str, Any]) -> None:
    """The whole scheduler: levels, labels and table, against the class as released."""
    setting = next(s for s in SETTINGS if s.name == name and s.config == config and s.step.get("eta", 0.0) == 0.0)
    theirs = run_stock(setting, 10, widened=False)
    chosen = {"method": setting.method, "options": setting.options(10, theirs)}
    scheduler = PathlineScheduler.from_config(getattr(diffusers, name)(**config).config, pathline=chosen)
    scheduler.set_timesteps(10)
    assert len(scheduler.timesteps) == len(theirs.levels)
    x, kind = start_and_noises()[0], scheduler.config.prediction_type
    for sigma, t in zip(scheduler.sigmas.double().tolist(), scheduler.timesteps, strict=False):
        scale = 1.0 if kind == "flow_prediction" else (1.0 + sigma**2) ** -0.5
        signal = 1.0 - sigma if kind == "flow_prediction" else scale
        x = scheduler.step(output(x, signal, sigma * scale, kind), t, x, return_dict=False)[0]
    torch.testing.assert_close(x, theirs.sample, rtol=1e-4, atol=1e-4)


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
