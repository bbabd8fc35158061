from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tunekit.report.retention_plot import draw_dial, draw_front, plot_retention


def row(scale, perplexity, retained, *, on_front=True, kl=0.0):
    return {
        "scale": scale,
        "perplexity": perplexity,
        "retained_perplexity": retained,
        "kl": kl,
        "on_front": on_front,
    }


ROWS = [row(0, 40, 20), row(0.5, 20, 21, kl=0.1), row(1, 25, 22, on_front=False, kl=0.3)]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:2], ROWS[:1]])
def test_every_retention_becomes_a_readable_png(tmp_path, rows):
    path = plot_retention({"rows": rows, "turns": "adapters"}, tmp_path / "plots" / "a.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) >= 400
        assert np.asarray(image.convert("L")).std() > 5


def test_the_front_is_joined_and_every_point_bears_its_scale():
    axes = Figure().subplots()
    draw_front(axes, ROWS)
    front, beaten, base = axes.get_lines()
    np.testing.assert_array_equal(front.get_xydata(), [(20, 40), (21, 20)])
    np.testing.assert_array_equal(beaten.get_xydata(), [(22, 25)])
    assert list(base.get_xdata()) == [20, 20]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["front", "beaten by another", "base"]
    assert [(text.get_text(), text.xy) for text in axes.texts] == [
        ("0", (20, 40)),
        ("0.5", (21, 20)),
        ("1", (22, 25)),
    ]


def test_the_divergence_is_drawn_over_the_dial():
    axes = Figure().subplots()
    draw_dial(axes, ROWS, turns="weights")
    np.testing.assert_array_equal(axes.get_lines()[0].get_xydata(), [(0, 0), (0.5, 0.1), (1, 0.3)])
    assert axes.get_xlabel() == "scale of the weights"
