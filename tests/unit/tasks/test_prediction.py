from __future__ import annotations

import json

from tunekit.tasks.prediction import (
    Answer,
    AnswerPrediction,
    NumberPrediction,
    Prediction,
    TaggedWord,
    TagPrediction,
)

CAT = Prediction("cat", 0.75, {"cat": 0.75, "dog": 0.2, "emu": 0.05}, ("cat",), "a.jpg")


def test_a_prediction_reads_as_one_line_with_its_runners_up():
    assert str(CAT) == "a.jpg: cat 75.0% (dog 20.0%, emu 5.0%)"


def test_a_prediction_without_an_id_leaves_it_out():
    assert str(Prediction("yes", 1.0, {"yes": 1.0}, ("yes",))) == "yes 100.0%"


def test_several_labels_are_all_given():
    both = Prediction("sky", 0.9, {"sky": 0.9, "sea": 0.6, "sun": 0.1}, ("sky", "sea"))
    assert str(both) == "sky 90.0%, sea 60.0% (sun 10.0%)"


def test_no_label_above_the_threshold_is_said():
    none = Prediction("sky", 0.4, {"sky": 0.4, "sea": 0.1}, ())
    assert str(none) == "no label (sky 40.0%, sea 10.0%)"


def test_a_prediction_survives_json():
    read = json.loads(json.dumps(CAT.to_json()))
    assert Prediction(**{**read, "labels": tuple(read["labels"])}) == CAT
    assert list(read["probabilities"]) == ["cat", "dog", "emu"]


def test_predictions_of_texts_read_as_one_line():
    assert str(NumberPrediction(3.14159)) == "3.142"
    assert str(NumberPrediction(1250000.0, "a film")) == "a film: 1.25e+06"
    words = (TaggedWord("Ada", "NOUN", 0.9), TaggedWord("met", None, None))
    assert str(TagPrediction(words)) == "Ada/NOUN met/?"
    assert str(AnswerPrediction(Answer("Ada", 0.5, 0, 3))) == "Ada 50.0%"
    assert str(AnswerPrediction(Answer("", 0.9), id="Who?")) == "Who?: no answer 90.0%"
