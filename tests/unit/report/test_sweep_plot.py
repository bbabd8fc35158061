"""The sweep's picture: what is drawn where, read back from the axes."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tunekit.report.sweep_plot import draw_axis, draw_map, plot_sweep

RATES = {"rate": [1e-4, 1e-3, 1e-2]}
PARTS = {"train": ["head", "last 2"]}
DECAYS = {"decay": [0.0, 0.1]}


def rows(space, *, seeds=2, failed=()):
    """Every combination with every seed; the n-th scores n tenths, unless it is one of `failed`."""
    found = []
    for values in itertools.product(*space.values(), range(seeds)):
        score = None if len(found) in failed else len(found) / 10
        found.append({**dict(zip(space, values, strict=False)), "score": score})
    return found


def drawn(found, axis):
    axes = Figure().subplots()
    draw_axis(axes, found, axis, "val_accuracy")
    return axes


def points(axes, label):
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def texts(axes):
    return {text.get_text() for text in axes.texts}


@pytest.mark.parametrize(
    "found",
    [
        rows(RATES),
        rows(PARTS),
        rows(RATES | DECAYS),
        rows(RATES | DECAYS | PARTS),
        rows(RATES, seeds=1, failed=(0, 1, 2)),
        rows(RATES | DECAYS, failed=range(12)),
        [{"rate": 10.0**-i, "dropout": i / 7, "score": i / 9} for i in range(5)],
        [{"all": "8 members", "score": i / 9} for i in range(8)],
    ],
    ids=["numbers", "words", "map", "many", "failed", "failed map", "searched", "seeds"],
)
def test_every_sweep_becomes_a_readable_png(tmp_path, found):
    axes = [name for name in found[0] if name != "score"]
    path = plot_sweep(found, axes, tmp_path / "plots" / "s.png", metric="val_accuracy", title="t")
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) >= 240
        assert np.asarray(image.convert("L")).std() > 4


def test_every_member_is_a_point_and_seeds_have_a_mean():
    axes = drawn(rows(RATES), "rate")
    assert points(axes, "member") == [
        (1e-4, 0.0), (1e-4, 0.1), (1e-3, 0.2), (1e-3, 0.3), (1e-2, 0.4), (1e-2, 0.5),
    ]  # fmt: skip
    means = points(axes, "mean")
    assert [x for x, _ in means] == RATES["rate"]
    assert [y for _, y in means] == pytest.approx([0.05, 0.25, 0.45])


def test_the_band_is_the_sample_deviation():
    (band,) = drawn(rows(RATES), "rate").collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.05 - 0.1 / 2**0.5)
    assert heights.max() == pytest.approx(0.45 + 0.1 / 2**0.5)


def test_one_seed_has_no_band():
    assert not drawn(rows(RATES, seeds=1), "rate").collections


def test_those_that_failed_are_crosses_at_the_foot():
    axes = drawn(rows(RATES, failed=(4, 5)), "rate")
    assert points(axes, "failed") == [(1e-2, 0.02)]
    assert len(points(axes, "member")) == 4


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1e-4, 3e-4, 1e-3], "log"),
        ([16, 32, 64, 128], "log"),
        ([1, 2, 3, 10], "log"),
        ([1, 2, 3, 4, 5], "linear"),
        ([0.0, 0.01, 0.1], "linear"),
        ([0.001, 0.01], "log"),
        ([1, 2], "linear"),
        ([3], "linear"),
    ],
)
def test_values_spaced_by_factors_lie_on_a_logarithmic_axis(values, scale):
    axes = drawn(rows({"x": values}), "x")
    assert axes.get_xscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{v:g}" for v in values]


def test_many_searched_values_are_not_joined():
    values = list(np.linspace(0.1, 0.9, 20))
    labels = {line.get_label() for line in drawn(rows({"x": values}, seeds=1), "x").get_lines()}
    assert labels == {"member"}


def test_words_are_lines_of_a_list_in_their_order_with_what_failed():
    axes = drawn(rows(PARTS, seeds=3, failed=(4,)), "train")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["head", "last 2"]
    assert axes.get_ylim() == (1.5, -0.5)
    assert texts(axes) == {"1 of 3 failed"}


def test_true_and_one_are_words_where_they_meet():
    axes = drawn([{"x": "true", "score": 0.1}, {"x": 1, "score": 0.2}], "x")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["true", "1"]


def shown(found, **changes):
    axes = Figure().subplots()
    draw_map(axes, found, ["rate", "decay"], **{"lower_is_better": False, **changes})
    return axes


def test_a_map_has_the_mean_and_deviation_of_each_pair_and_frames_the_best():
    axes = shown(rows(RATES | DECAYS, failed=(2, 3)))
    assert texts(axes) == {
        "failed", *(f"{mean:.3f}\n± 0.071" for mean in (0.05, 0.45, 0.65, 0.85, 1.05))
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0001", "0.001", "0.01"]
    (frame,) = axes.patches
    assert frame.get_xy() == (1.5, 0.5)


def test_a_map_of_losses_frames_the_lowest():
    (frame,) = shown(rows(RATES | DECAYS), lower_is_better=True).patches
    assert frame.get_xy() == (-0.5, -0.5)
