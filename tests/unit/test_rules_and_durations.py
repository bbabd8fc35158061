"""Patterns to values, and lengths of time to steps."""

from __future__ import annotations

import pytest

from tunekit.durations import Duration
from tunekit.errors import SelectionError
from tunekit.rules import Rules, matching

NAMES = ["backbone/stem/kernel", "heads/label/logits/kernel", "heads/label/logits/bias"]


def test_the_first_matching_rule_wins():
    rules = Rules((("heads/.*", 10.0), (".*/kernel", 1.0), (".*", 0.0)))
    assert rules.resolve(NAMES) == dict(zip(NAMES, [1.0, 10.0, 10.0], strict=True))


def test_a_pattern_that_matches_nothing_is_an_error_with_the_near_start():
    expected = r"'head/\.\*' matches no variable. Did you mean 'heads/\.\*'\? 2 begin with 'heads/'"
    with pytest.raises(SelectionError, match=expected):
        Rules((("head/.*", 1.0),), default=0.0).resolve(NAMES)


def test_the_part_of_a_pattern_that_is_wrong_is_mended():
    expected = (
        r"'heads/lable/\.\*' .* Did you mean 'heads/label/\.\*'\? 2 begin with 'heads/label/'"
    )
    with pytest.raises(SelectionError, match=expected):
        matching("heads/lable/.*", NAMES)


def test_an_uncovered_name_without_a_default_is_an_error():
    with pytest.raises(SelectionError, match=r"no rule covers 'backbone/stem/kernel'"):
        Rules((("heads/.*", 1.0),)).resolve(NAMES)


def test_a_pattern_is_matched_whole_and_must_be_one():
    assert matching("heads/.*bias", NAMES) == NAMES[2:]
    with pytest.raises(SelectionError, match=r"'\*' is not a regular expression"):
        matching("*", NAMES)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("3 epochs", 150), ("1 epoch", 50), ("0.5 epochs", 25), ("500 steps", 500), ("10%", 15)],
)
def test_durations_become_steps(text, steps):
    duration = Duration.parse(text)
    assert duration.to_steps(steps_per_epoch=50, total_steps=150) == steps
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize("text", ["three epochs", "5", "-1 epoch", "5 minutes", ""])
def test_what_is_no_duration_is_said(text):
    with pytest.raises(ValueError, match="expected a duration such as '3 epochs'"):
        Duration.parse(text)
