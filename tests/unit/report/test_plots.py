from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tunekit.evaluation.metrics import classification_metrics
from tunekit.report.plots import (
    draw_confusion_matrix,
    draw_curves,
    plot_confusion_matrix,
    plot_curves,
    plot_result,
)


def history_of(*epochs_by_phase):
    rows = []
    for phase, epochs in enumerate(epochs_by_phase):
        for _ in range(epochs):
            n = len(rows) + 1
            row = {"epoch": n, "phase": phase, "loss": 1 / n, "val_loss": 2 / n}
            rows.append({**row, "val_accuracy": 1 - 1 / n, "learning_rate": 1e-3 / n})
    return rows


def metrics_of(names, *, multi_label=False):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4 * len(names), len(names)))
    labels = (logits > 0.3).astype(float) if multi_label else np.arange(len(logits)) % len(names)
    return classification_metrics(logits, labels, names, multi_label=multi_label)


def curves(history):
    axes = Figure().subplots(3, 1)
    draw_curves(axes, history)
    return axes


def lines(axes):
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.get_lines()}


@pytest.mark.parametrize(
    ("history", "names", "multi_label"),
    [
        (history_of(3), ["a", "b", "c"], False),
        (history_of(1), [f"a label whose name is long, number {i}" for i in range(12)], False),
        (history_of(2, 1, 3), [f"label {i}" for i in range(50)], False),
        (history_of(40), [str(i) for i in range(70)], False),
        (history_of(2), ["a", "b", "c"], True),
        ([], ["a", "b"], False),
    ],
    ids=["plain", "one epoch", "phases", "many labels", "multi-label", "no history"],
)
def test_every_kind_of_run_becomes_a_readable_png(tmp_path, history, names, multi_label):
    metrics = metrics_of(names, multi_label=multi_label)
    path = plot_result(history, metrics, tmp_path / "plots" / "run.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 600
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 5  # something is drawn


def test_curves_and_matrix_can_be_written_apart(tmp_path):
    metrics = metrics_of(["a", "b"])
    both = [plot_curves(history_of(2), tmp_path / "curves.png")]
    both.append(plot_confusion_matrix(metrics, tmp_path / "matrix.png"))
    assert [path.read_bytes()[:4] for path in both] == [b"\x89PNG"] * 2


def test_a_run_without_metrics_has_its_curves_alone(tmp_path):
    alone = plot_result(history_of(2), {}, tmp_path / "a.png").read_bytes()
    assert alone == plot_curves(history_of(2), tmp_path / "b.png").read_bytes()


def test_curves_show_the_numbers_of_the_history():
    loss, accuracy, rate = curves(history_of(3))
    assert lines(loss)["training"] == pytest.approx([1, 1 / 2, 1 / 3])
    assert lines(loss)["validation"] == pytest.approx([2, 1, 2 / 3])
    assert lines(accuracy)["validation"] == pytest.approx([0, 1 / 2, 2 / 3])
    assert lines(rate)["learning rate"] == pytest.approx([1e-3, 5e-4, 1e-3 / 3])


def test_a_run_without_validation_says_that_accuracy_was_not_measured():
    _, accuracy, _ = curves([{"epoch": 1, "phase": 0, "loss": 1.0, "learning_rate": 1e-3}])
    assert [text.get_text() for text in accuracy.texts] == ["not measured"]


def test_a_mark_stands_where_each_later_phase_begins():
    loss, _, _ = curves(history_of(2, 3, 1))
    marks = [line.get_xdata() for line in loss.get_lines() if line.get_linestyle() == "--"]
    assert [list(x) for x in marks] == [[2.5, 2.5], [5.5, 5.5]]
    assert [text.get_text() for text in loss.texts] == ["phase 1", "phase 2", "phase 3"]


def test_one_phase_needs_no_mark():
    loss, _, _ = curves(history_of(3))
    assert list(loss.texts) == []
    assert set(lines(loss)) == {"training", "validation"}


def matrix(counts, names):
    axes = Figure().subplots()
    draw_confusion_matrix(axes, counts, names)
    return axes


def test_cells_have_counts_and_shares_of_the_true_label():
    axes = matrix([[3, 1], [0, 2]], ["a", "b"])
    assert [text.get_text() for text in axes.texts] == ["3\n75%", "1\n25%", "0", "2\n100%"]


def test_a_label_without_examples_has_an_empty_row_not_a_warning():
    axes = matrix([[2, 0], [0, 0]], ["a", "b"])
    drawn = np.ma.filled(np.ma.asarray(axes.images[0].get_array()), np.nan)
    assert np.isnan(drawn[1]).all()


def test_long_names_keep_both_ends():
    axes = matrix(np.eye(2, dtype=int), ["Long-billed curlew, adult", "Long-billed curlew, young"])
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "Long-bille…lew, adult",
        "Long-bille…lew, young",
    ]


def test_names_are_no_formulas_and_may_lack_a_glyph(tmp_path):
    names = ["$5", "x_{2}$", "\u30ad"]
    path = plot_confusion_matrix(metrics_of(names), tmp_path / "names.png")
    assert path.stat().st_size > 0
