"""The picture of devices' memory: read back from the axes."""

import pytest
from matplotlib.figure import Figure

from tunekit.report.memory_plot import ALARM, COLOURS, GIB, Bar, draw_memory

FITS = Bar("v5e-8", {"frozen": 2 * GIB, "trained": GIB, "activations": 6 * GIB}, 16 * GIB)
LACKS = Bar("v5e-4", {"frozen": 4 * GIB, "trained": GIB, "activations": 15 * GIB}, 16 * GIB)


def drawn(*bars):
    axes = Figure().subplots()
    draw_memory(axes, bars)
    return axes


def test_a_bar_is_its_kinds_end_to_end():
    parts = [patch for patch in drawn(FITS).patches if patch.get_width()]
    assert [part.get_width() for part in parts] == pytest.approx([2, 1, 6])
    assert [part.get_x() for part in parts] == pytest.approx([0, 2, 3])


def test_every_bar_says_its_sum_and_share_and_an_overflow_in_red():
    texts = {text.get_text(): text.get_color() for text in drawn(FITS, LACKS).texts}
    assert list(texts) == ["9 GiB, 56%", "20 GiB, 125%"]
    assert texts["20 GiB, 125%"] == ALARM != texts["9 GiB, 56%"]


def test_the_limit_of_each_device_is_marked_within_the_picture():
    axes = drawn(FITS, LACKS)
    limits = [line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata())]
    assert limits == pytest.approx([16, 16])
    assert axes.get_xlim()[1] > 20


def test_what_no_bar_holds_is_not_in_the_legend():
    _, labels = drawn(FITS).get_legend_handles_labels()
    assert len(labels) == 4 < len(COLOURS) + 1
