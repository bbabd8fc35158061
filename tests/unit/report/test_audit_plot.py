"""The audit's picture: what is drawn where, read back from the axes."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tunekit.report.audit_plot import draw_audit, name_groups, plot_audit


def row(group, *, weights=4, trained=0, moved=0, distance=0.0, largest=None):
    return {
        "group": group,
        "parameters": 10,
        "weights": weights,
        "trained": trained,
        "moved": moved,
        "relative_l2": distance,
        "largest": largest and {"name": f"{group}/kernel", "relative_l2": largest},
    }


ROWS = (
    row("stem"),
    row("blocks[0]"),
    row("blocks[1]", trained=2, moved=2, distance=0.02, largest=0.05),
    row("blocks[2]", trained=4, moved=4, distance=0.1, largest=0.3),
    row("heads/label", trained=4, moved=4, distance=None),
)


def drawn(rows):
    axes = Figure().subplots()
    draw_audit(axes, rows)
    return axes


def points(axes):
    """Places and distances by what the legend calls them."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {
        line.get_label(): dict(zip(line.get_ydata(), line.get_xdata(), strict=True))
        for line in lines
    }


def notes(axes):
    return {text.get_text(): text.get_position()[1] for text in axes.texts}


def picture(rows, tmp_path, *, frozen_moved=()):
    audit = {
        "groups": list(rows),
        "frozen": {"variables": 8, "moved": list(frozen_moved)},
        "statistics": {"variables": 2, "moved": []},
    }
    return plot_audit(audit, tmp_path / "plots" / "audit.png")


@pytest.mark.parametrize(
    "rows",
    [ROWS, [row("stem"), row("heads/label")], [row(f"blocks[{i}]") for i in range(90)]],
    ids=["plain", "nothing moved", "many groups"],
)
def test_every_audit_becomes_a_readable_png(tmp_path, rows):
    with Image.open(picture(rows, tmp_path)) as image:
        assert image.format == "PNG" and min(image.size) >= 380
        assert np.asarray(image.convert("L")).std() > 4


def test_every_group_that_moved_has_its_point_at_its_distance():
    shown = points(drawn(ROWS))
    assert shown["all of it trained"] == {3: 0.1}
    assert shown["a part trained"] == {2: 0.02}
    assert shown["largest variable"] == {2: 0.05, 3: 0.3}


def test_the_frozen_lie_under_one_band_that_says_unmoved():
    axes = drawn(ROWS)
    assert notes(axes) == {"frozen: unmoved": 0.5, "moved away from zero": 4}
    (band,) = axes.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((-0.45, 1.45))


def test_a_frozen_group_that_moved_is_marked():
    axes = drawn([row("stem", moved=1, distance=0.5, largest=0.6)])
    assert points(axes)["moved, though frozen"] == {0: 0.5}
    assert notes(axes) == {}


@pytest.mark.parametrize(
    ("one", "note"),
    [
        (row("top", weights=0), "no weights"),
        (row("top", trained=4), "trained, yet unmoved"),
        (row("top"), "frozen: unmoved"),
    ],
)
def test_a_group_without_a_point_says_why(one, note):
    assert list(notes(drawn([one]))) == [note]


def test_points_lie_inside_the_axis():
    low, high = drawn(ROWS).get_xlim()
    assert (low, high) == pytest.approx((0.01, 0.45))


def test_a_diverged_run_can_be_drawn(tmp_path):
    rows = [row("top", trained=4, moved=4, distance=float("inf"), largest=float("inf")), *ROWS]
    assert picture(rows, tmp_path).stat().st_size > 0


def test_names_of_many_blocks_are_thinned_and_those_of_other_groups_kept():
    axes = Figure().subplots()
    name_groups(axes, ["stem", *(f"blocks[{i}]" for i in range(100)), "top", "heads/label"])
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[:3] == ["stem", "blocks[0]", "blocks[2]"]
    assert shown[-3:] == ["blocks[98]", "top", "heads/label"]
