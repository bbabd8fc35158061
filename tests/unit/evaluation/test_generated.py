from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from sacrebleu import corpus_bleu, corpus_chrf

from tests.unit.tasks.small_language import dialogue, model
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.generated import as_base, compare, questions, sample_scores, samples
from tunekit.models.model import Model
from tunekit.names import structural_names
from tunekit.tasks.language_modelling import LanguageModelling

REFERENCES = ["the cat sat on the mat today", "a dog ran over the old bridge"]
CANDIDATES = ["the cat sat on the mat", "a dog walked over the bridge"]


def test_the_same_words_score_best_and_other_words_nothing() -> None:
    same, other = compare(REFERENCES, REFERENCES), compare(REFERENCES, ["xyz qqq", "xyz qqq"])
    for name, best in {
        "bleu": 100,
        "chrf": 100,
        "rouge1": 1,
        "rougeL": 1,
        "exact_match": 1,
    }.items():
        assert same[name] == pytest.approx(best)
        assert other[name] < 0.1 * best


def test_corpus_scores_are_those_of_sacrebleu_and_say_how_they_were_computed() -> None:
    found = compare(REFERENCES, CANDIDATES)
    assert found["bleu"] == corpus_bleu(CANDIDATES, [REFERENCES]).score
    assert found["chrf"] == corpus_chrf(CANDIDATES, [REFERENCES]).score
    assert found["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert found["signatures"]["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")
    assert found["signatures"]["rouge"].startswith("f1|stem:no|words:unicode|version:0.")


def test_rouge_is_the_harmonic_mean_of_shared_words() -> None:
    found = compare(["the cat sat down"], ["The cat, sat"])
    assert found["rouge1"] == pytest.approx(2 * 3 / (4 + 3))
    assert found["rouge2"] == pytest.approx(2 * 2 / (3 + 2))
    swapped = compare(["the cat sat down"], ["sat the cat"])
    assert swapped["rouge1"] == pytest.approx(2 * 3 / (4 + 3))
    assert swapped["rougeL"] == pytest.approx(2 * 2 / (4 + 3))


@pytest.mark.parametrize(
    "text", ["猫が座った", "über die brücke", "кошка сидела", "고양이가 앉았다"]
)
def test_rouge_knows_the_words_of_every_script(text) -> None:
    # rouge-score by itself sees no word in most of these, and gives a perfect answer 0.
    assert compare([text], [text])["rouge1"] == 1


def test_signs_of_scripts_without_spaces_are_words() -> None:
    assert compare(["猫座"], ["猫犬"])["rouge1"] == pytest.approx(0.5)


def test_the_nearest_of_several_references_counts() -> None:
    several = compare([["no", "yes it is so"], ["maybe"]], ["yes it is so", "maybe"])
    assert (several["exact_match"], several["rouge1"]) == (1, 1)
    assert several["signatures"]["bleu"].startswith("nrefs:var")
    one = compare(["no", "maybe"], ["yes it is so", "maybe"])
    assert one["exact_match"] == 0.5 and one["chrf"] < several["chrf"]


def test_an_exact_match_forgives_spaces_round_it_alone() -> None:
    assert compare(["Paris"], [" Paris\n"])["exact_match"] == 1
    assert compare(["Paris"], ["paris"])["exact_match"] == 0


def test_a_model_that_writes_nothing_scores_nothing() -> None:
    found = compare(["yes"], [""])
    assert [found[name] for name in ("bleu", "chrf", "rouge1", "exact_match")] == [0, 0, 0, 0]


def test_references_must_be_as_many_as_candidates() -> None:
    with pytest.raises(DataError, match="got 2 for 1"):
        compare(["a", "b"], ["a"])
    with pytest.raises(DataError, match="one or more candidates, got 0 for 0"):
        compare([], [])
    with pytest.raises(DataError, match=r"references\[1\]: expected one reference or more"):
        compare(["a", []], ["a", "b"])


@pytest.fixture(scope="module")
def llama():
    return model()


SOURCE = [
    dialogue("is it?", "yes"),
    dialogue("who?", "me"),
    dialogue("is it?", "no"),
    dialogue("where?", "here"),
    dialogue("is it?", "no"),
]


def test_equal_prompts_are_asked_once_with_all_their_answers(llama) -> None:
    asked = questions(LanguageModelling(), SOURCE, llama, 10)
    found = [(each.question.text, each.references) for each in asked]
    assert found == [("is it?", ("yes", "no")), ("who?", ("me",)), ("where?", ("here",))]


def test_few_questions_are_spread_over_the_source_and_long_ones_left_out(llama) -> None:
    source = [dialogue(letter * 3, "yes") for letter in "abcde"]
    task = LanguageModelling()
    texts = [each.question.text for each in questions(task, source, llama, 3)]
    assert texts == ["aaa", "ccc", "eee"]
    longer = [*source, dialogue("a" * 50, "yes")]
    most = len(questions(task, source, llama, 1)[0].question.ids)
    assert len(questions(task, longer, llama, 9, longest=most)) == 5
    assert questions(task, source, llama, 3, longest=2) == []


def test_a_model_without_a_tokenizer_cannot_be_asked(llama) -> None:
    silent = Model(replace(llama.backbone, tokenizer=None))
    with pytest.raises(ModelError, match="reads no text"):
        questions(LanguageModelling(), SOURCE, silent, 1)


def greedy(llama, count=4, room=48):
    """Writes by whole forward passes over texts of one length, so of one program."""

    def generate(prompts):
        ids = [list(prompt) for prompt in prompts]
        for _ in range(count):
            padded = np.array([row + [0] * (room - len(row)) for row in ids])
            mask = np.array([[1] * len(row) + [0] * (room - len(row)) for row in ids])
            logits = llama.logits({"token_ids": padded, "padding_mask": mask})
            for row, each in zip(ids, logits, strict=True):
                row.append(int(each[len(row) - 1].argmax()))
        decode = llama.backbone.tokenizer.decode
        new = zip(ids, prompts, strict=True)
        return [decode(row[len(prompt) :], special=True) for row, prompt in new]

    return generate


def test_samples_have_what_base_and_tuned_model_write_to_a_prompt() -> None:
    llama = model()
    write, task = greedy(llama), LanguageModelling()
    before = [each["tuned"] for each in samples(llama, SOURCE, 2, task=task, generate=write)]
    adapter = llama.add_adapter("a", "lora").adapters["a"].adapter
    for variable in adapter.variables.values():
        variable.assign(variable + 0.5 * jnp.ones_like(variable.value))
    rows = samples(llama, SOURCE, 2, task=task, generate=write)
    assert [row["base"] for row in rows] == before
    assert [row["tuned"] for row in rows] != before
    assert [row["prompt"] for row in rows] == ["is it?", "where?"]
    assert [row["references"] for row in rows] == [["yes", "no"], ["here"]]
    assert llama.adapters.active
    scores = sample_scores([{**row, "tuned": row["references"][-1]} for row in rows])
    assert scores["tuned"]["exact_match"] == 1 and scores["base"]["exact_match"] == 0


def test_no_prompt_has_no_samples(llama) -> None:
    write = greedy(llama)
    assert samples(llama, SOURCE, 2, task=LanguageModelling(), generate=write, longest=1) == []


def test_within_the_block_a_model_trained_as_a_whole_is_its_base() -> None:
    llama = model()
    base = {n: v.value for n, v in structural_names(llama.keras).items() if "embedding" in n}
    ids = [[3, 4, 5]]
    logits = llama.logits(ids)
    for name, value in base.items():
        structural_names(llama.keras)[name].assign(value + 1)
    tuned = llama.logits(ids)
    with as_base(llama, base):
        np.testing.assert_array_equal(llama.logits(ids), logits)
    np.testing.assert_array_equal(llama.logits(ids), tuned)
    with pytest.raises(RuntimeError, match="stop"), as_base(llama, base):
        raise RuntimeError("stop")
    np.testing.assert_array_equal(llama.logits(ids), tuned)
