from __future__ import annotations

from tunekit.tasks.spec import ClassificationSpec


def test_a_default_spec_has_no_issue():
    assert ClassificationSpec().issues() == []
    assert ClassificationSpec(class_weights="balanced").issues() == []
    assert ClassificationSpec(class_weights=(1.0, 0.0)).issues() == []


def test_each_impossible_class_weight_is_named_by_its_position():
    issues = ClassificationSpec(class_weights=(1.0, -2.0, float("nan"))).issues()
    assert [path for path, _ in issues] == ["class_weights[1]", "class_weights[2]"]
    assert "got -2.0" in issues[0][1]


def test_class_weights_that_are_all_zero_leave_nothing_to_train_on():
    assert [path for path, _ in ClassificationSpec(class_weights=(0.0, 0.0)).issues()] == [
        "class_weights"
    ]
