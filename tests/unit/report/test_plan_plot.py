"""The plan's picture: rates, marks and bands, read back from what is drawn."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tunekit.models.depth import Group
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import resolve_plan
from tunekit.report.plan_plot import draw_plan, plan_grid, plot_plan


def group(name, kind):
    weights = (f"{name}/kernel", f"{name}/bias")
    return Group(name, kind, weights, (name,), None, 6, weights)


GROUPS = (
    group("stem", "stem"),
    group("blocks[0]", "block"),
    group("blocks[1]", "block"),
    Group("blocks[2]", "block", (), ("pool",), None, 0, ()),
    group("heads/label", "head"),
)
STEPS = 4
HEAD = Phase(train="heads/label", epochs=1, learning_rate=1e-2, schedule="constant", warmup="0%")
LAST = Phase(
    train=("heads/label", "blocks[1]"),
    epochs=2,
    learning_rate=1e-3,
    schedule="linear",
    warmup="0%",
    multipliers={"blocks[1]": 0.1},
)
BIASES = Phase(train="bias", epochs=1, learning_rate=1e-4, warmup="0%")


def select(selectors):
    weights = [name for one in GROUPS for name in one.weights]
    return frozenset(n for n in weights if any(n.startswith(s) or n.endswith(s) for s in selectors))


def resolved(*plan, steps_per_epoch=STEPS):
    return resolve_plan(
        plan, select, default_train=("heads",), steps_per_epoch=lambda _: steps_per_epoch
    )


def lengths(*plan):
    return [phase.epochs for phase in plan]


def drawn(*plan):
    axes = Figure().subplots()
    mesh = draw_plan(axes, resolved(*plan), GROUPS, lengths(*plan))
    return axes, mesh


def bands(mesh):
    """Cells by group: its lower part, core, upper part, and the gap above it."""
    cells = np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan)
    gap = np.full((1, cells.shape[1]), np.nan)
    return np.vstack([cells, gap]).reshape(len(GROUPS), 4, -1)


def test_the_grid_has_the_rate_of_every_group_at_every_step():
    plan = (HEAD, LAST)
    edges, rates, shares = plan_grid(resolved(*plan), GROUPS, lengths(*plan))
    falling = 1e-3 * (1 - np.arange(8) / 8)
    assert edges == pytest.approx(np.arange(13) / 4)
    assert rates[4] == pytest.approx(np.concatenate([np.full(4, 1e-2), falling]))
    assert rates[2] == pytest.approx(np.concatenate([np.zeros(4), 0.1 * falling]))
    assert not rates[[0, 1, 3]].any()
    assert shares[2] == pytest.approx([0] * 4 + [1] * 8)


def test_a_long_course_is_thinned_evenly():
    phase = resolved(LAST, steps_per_epoch=3000)
    edges, rates, _ = plan_grid(phase, GROUPS, [2])
    assert len(edges) == 121
    assert rates[4] == pytest.approx(1e-3 * (1 - (np.arange(120) + 0.5) / 120), rel=1e-4)


def test_what_trains_whole_has_a_full_band_and_a_part_of_it_a_thin_one():
    _, mesh = drawn(HEAD, BIASES)
    head, body, pool = (bands(mesh)[i] for i in (4, 1, 3))
    assert head[:3, :4] == pytest.approx(np.full((3, 4), 1e-2))
    assert np.isfinite(body).tolist() == [[False] * 8, [False] * 4 + [True] * 4, *[[False] * 8] * 2]
    assert np.isnan(pool).all()


def test_colours_reach_from_the_highest_rate_to_a_twentieth_of_the_lowest_peak():
    _, mesh = drawn(HEAD, LAST, replace(HEAD, learning_rate=1e-5))
    assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((1e-5 / 20, 1e-2))


def test_a_rate_of_zero_is_still_drawn_as_training():
    (phase,) = resolved(HEAD)
    silent = replace(phase, learning_rates=np.zeros(STEPS, np.float32))
    mesh = draw_plan(Figure().subplots(), [silent], GROUPS, [1])
    assert np.isfinite(bands(mesh)[4, :3]).all()


def test_a_mark_and_a_number_stand_where_each_phase_begins():
    axes, _ = drawn(HEAD, LAST, HEAD)
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [1, 3]
    said = {text.get_position()[0]: text.get_text() for text in axes.texts}
    assert said == {0: "1  heads/label", 1: "2  heads/label, blocks[1]", 3: "3  heads/label"}


def test_where_phases_are_short_only_the_numbers_that_fit_stand():
    axes, _ = drawn(*[HEAD] * 80)
    said = [text.get_text() for text in axes.texts]
    assert said[:2] == ["1", "3"] and all(text.isdecimal() for text in said)


def test_the_axis_says_that_a_phase_may_stop_early_and_what_thin_bands_are():
    plain, _ = drawn(HEAD)
    assert plain.get_xlabel().split("  ")[0] == "epochs" and "thin" not in plain.get_xlabel()
    early, _ = drawn(Phase(train="heads/label", epochs=1, early_stopping=2), BIASES)
    assert "may stop early" in early.get_xlabel() and "thin bands" in early.get_xlabel()


@pytest.mark.parametrize("plan", [[HEAD], [HEAD, LAST, BIASES], [LAST] * 30])
def test_every_plan_becomes_a_readable_png(tmp_path, plan):
    path = plot_plan(resolved(*plan), GROUPS, lengths(*plan), tmp_path / "plots" / "plan.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) >= 380
        assert np.asarray(image.convert("L")).std() > 5


def test_a_plan_in_which_nothing_trains_can_be_drawn(tmp_path):
    phases = resolve_plan(
        [Phase(train="none", epochs=1)],
        lambda _: frozenset(),
        default_train=(),
        steps_per_epoch=lambda _: 4,
    )
    assert plot_plan(phases, GROUPS, [1], tmp_path / "plan.png").stat().st_size > 0
