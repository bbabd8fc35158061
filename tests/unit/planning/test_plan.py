"""What a plan says of itself: the fit, the time of the run, text, JSON and pictures."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.unit.planning.made_plans import GIB, made_phase, made_plan
from tunekit.errors import TunekitError
from tunekit.planning.comparison import Comparison
from tunekit.planning.plan import Change
from tunekit.planning.plan_text import amount, columns, gibibytes, quoted, span

FSDP_TEXT = "runtime.mesh={data: 1, fsdp: 4, tensor: 2}"


def mended():
    change = Change((FSDP_TEXT, "batch.accumulate=4"), made_plan(made_phase(9.0)))
    return made_plan(made_phase(34.0), change=change)


def test_a_plan_fits_where_its_worst_phase_does():
    plan = made_plan(made_phase(1.0), made_phase(6.0))
    assert plan.worst is plan.phases[1]
    assert plan.fits and plan.margin == plan.room - plan.worst.total
    assert plan.worst.total == sum(plan.worst.memory.values())
    too_large = made_plan(made_phase(34.0), made_phase(1.0))
    assert too_large.fits is False and too_large.margin < 0


def test_a_run_takes_all_steps_of_all_phases_within_a_range():
    plan = made_plan(made_phase(), made_phase())
    assert plan.steps == 2500
    assert plan.seconds == pytest.approx((2500 * 0.171, 2500 * 0.43))


def test_without_a_compiler_nothing_is_said_of_the_fit_but_what_the_state_rules_out():
    assert made_plan(made_phase(None)).fits is None
    assert made_plan(made_phase(None), on="v5e-1").fits is False


@pytest.mark.parametrize(
    "plan",
    [
        made_plan(largest_batch=16),
        made_plan(made_phase(), made_phase(3.0), blocks=()),
        made_plan(made_phase(None), notes=("Activations are not told: install a compiler. " * 3,)),
        mended(),
        made_plan(made_phase(34.0), tried=((("batch.accumulate=4",), 20 * GIB),)),
    ],
    ids=["fits", "phases", "counted", "mended", "hopeless"],
)
def test_a_plan_is_text_of_a_hundred_columns_and_json(plan):
    assert max(map(len, str(plan).splitlines())) <= 100
    told = json.loads(json.dumps(plan.to_json()))
    assert told["fits"] == plan.fits and told["target"]["devices"] == 8
    assert list(told) == list(made_plan().to_json())


def test_the_text_names_memory_fit_range_and_what_it_leaves_out():
    text = str(made_plan(largest_batch=16))
    assert "8 x TPU v5e (v5e-8)" in text and "2 and 4 of 32 blocks" in text
    assert re.search(r"phase 1 +2.00 GiB", text)
    assert "fits: 8.06 GiB of 15.75 GiB a device, 7.69 GiB are left." in text
    assert "largest batch found that fits: 16 examples" in text
    assert "3.6 to 9.0 min" in text
    assert "a range" in text and "evaluation" in text and "compilation" in text


def test_the_change_is_told_as_a_shell_takes_it():
    text = " ".join(str(mended()).split())
    assert f"it fits with '{FSDP_TEXT}' batch.accumulate=4" in text
    assert "20.31 GiB are lacking" in text
    told = mended().to_json()["change"]
    assert told["overrides"] == [FSDP_TEXT, "batch.accumulate=4"]
    assert told["plan"]["fits"] is True and told["plan"]["change"] is None


def test_what_was_tried_in_vain_is_listed():
    text = str(made_plan(made_phase(34.0), tried=((("batch.accumulate=4",), 20 * GIB),)))
    assert "20.00 GiB with batch.accumulate=4" in text


def test_a_comparison_has_a_line_for_each_machine():
    plans = (made_plan(made_phase(34.0), on="v5e-4"), mended(), made_plan(on="h100-1"))
    lines = str(Comparison(plans)).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["v5e-4", "v5e-8", "h100-1"]
    assert [word for line in lines[1:4] for word in ("yes", "no", "changed") if word in line] == [
        "no",
        "changed",
        "yes",
    ]
    assert len(Comparison(plans).to_json()) == 3
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("plan", [made_plan(), mended(), made_plan(made_phase(1.0), made_phase())])
def test_a_plan_becomes_a_picture(tmp_path, plan):
    with Image.open(plan.plot(tmp_path / "deep" / "memory.png")) as image:
        assert image.format == "PNG" and min(image.size) >= 200
        assert np.asarray(image.convert("L")).std() > 4


def test_nothing_compiled_is_nothing_to_draw(tmp_path):
    plan = made_plan(made_phase(None), notes=("install a compiler",))
    with pytest.raises(TunekitError, match="no memory to draw.*install a compiler"):
        plan.plot(tmp_path / "memory.png")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (21_000_000, "21.0 M"), (8.03e9, "8.03 G"), (29.1e12, "29.1 T")],
)
def test_counts_have_three_digits(number, text):
    assert amount(number) == text


@pytest.mark.parametrize(
    ("lower", "upper", "text"),
    [(0.17, 0.43, "170 to 430 ms"), (0.5, 2.0, "500 ms to 2.0 s"), (216, 540, "3.6 to 9.0 min"),
     (7200, 200_000, "2.0 h to 2.3 d"), (2e-6, 9e-6, "2.0 to 9.0 us")],
)  # fmt: skip
def test_times_are_ranges_with_units(lower, upper, text):
    assert span(lower, upper) == text


def test_memory_is_told_in_gibibytes():
    assert gibibytes(15.75 * GIB) == "15.75 GiB" and gibibytes(10 * 2**20) == "10 MiB"


def test_columns_of_numbers_end_together():
    assert columns([("a", "b"), ("x", "1"), ("y", "100")]) == "a    b\nx    1\ny  100"


def test_overrides_with_blanks_are_quoted():
    assert quoted(FSDP_TEXT) == f"'{FSDP_TEXT}'" and quoted("batch.size=8") == "batch.size=8"
