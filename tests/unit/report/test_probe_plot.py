from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tunekit.report.probe_plot import draw_accuracy, draw_gradient, plot_probe


def depths(count, *, snr=0.3):
    names = ["stem", *(f"blocks[{i}]" for i in range(count - 2)), "top"]
    return [
        {"name": n, "accuracy": 0.5 + 0.3 * i / count, "standard_error": 0.04, "snr": snr}
        for i, n in enumerate(names)
    ]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("rows", [depths(3), depths(18), depths(90), depths(5, snr=0.0)])
def test_every_probe_becomes_a_readable_png(tmp_path, rows):
    probe = {"depths": rows, "majority": 0.5, "batch_size": 30, "train_examples": 240}
    path = plot_probe(probe, tmp_path / "plots" / "probe.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) >= 600
        assert np.asarray(image.convert("L")).std() > 5


def test_accuracies_have_their_errors_a_guess_and_the_band_of_ties():
    axes = Figure().subplots()
    rows = depths(4)
    draw_accuracy(axes, rows, majority=0.4)
    bars = axes.containers[0].lines[2][0].get_segments()
    for i, (bar, row) in enumerate(zip(bars, rows, strict=True)):
        low, high = row["accuracy"] - 0.04, row["accuracy"] + 0.04
        np.testing.assert_allclose(bar, [[i, low], [i, high]])
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((rows[-1]["accuracy"] - 0.04, rows[-1]["accuracy"]))
    assert legend(axes) == ["ties with the best", "always the most frequent label"]


def test_a_depth_without_signal_says_none_and_the_marks_say_what_they_are():
    axes = Figure().subplots()
    rows = [*depths(3), {**depths(3)[0], "snr": 0.0}]
    draw_gradient(axes, rows, batch_size=30, train_examples=1240)
    assert [(text.get_text(), text.get_position()[0]) for text in axes.texts] == [("none", 3)]
    assert legend(axes) == ["equal in a batch of 30", "equal in all 1,240 examples"]
    levels = [line.get_ydata()[0] for line in axes.get_lines()[:2]]
    assert levels == pytest.approx([1, 30 / 1240])
