from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from scipy.special import log_softmax

from tests.unit.tasks.small_language import END, TURN_END, dialogue, model, tokenizer
from tunekit.data.examples import Splits
from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.errors import DataError, ModelError, RecipeError
from tunekit.evaluation.language_modelling import evaluate
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.prompt_template import PromptTemplate
from tunekit.tasks.spec import LanguageModellingSpec

TEMPLATE = "Q: {prompt}\nA: "


def learned_text(columns, tok) -> str:
    """The targets that count, as text."""
    return tok.decode(columns["targets"][columns["loss_weights"] > 0], special=True)


def encoded(example, tok=None, length=200, **fields):
    tok = tok or tokenizer()
    return LanguageModelling(**fields).encoder(tok, length)(example, None)


@pytest.mark.parametrize(
    ("loss_on", "learned"),
    [
        ("responses", "yes<|im_end|>no<|im_end|>"),
        ("last_response", "no<|im_end|>"),
    ],
)
def test_a_dialogue_is_learned_by_turn_with_the_token_that_ends_each(loss_on, learned) -> None:
    tok = tokenizer()
    columns = encoded(dialogue("is it?", "yes", "sure?", "no"), tok, loss_on=loss_on)
    assert learned_text(columns, tok).replace("\n", "") == learned
    whole = tok.chat(dialogue("is it?", "yes", "sure?", "no")["messages"])
    assert tok.decode(columns["token_ids"], special=True) == whole


def test_a_whole_dialogue_is_learned_but_for_its_first_token() -> None:
    columns = encoded(dialogue("is it?", "yes"), loss_on="all")
    assert columns["loss_weights"].tolist() == [1] * (len(columns["token_ids"]) - 1) + [0]


def test_each_target_is_the_token_after() -> None:
    columns = encoded(dialogue("is it?", "yes"))
    np.testing.assert_array_equal(columns["targets"][:-1], columns["token_ids"][1:])
    assert columns["loss_weights"][-1] == 0
    shapes = {name: (column.shape, column.dtype.name) for name, column in columns.items()}
    length = len(columns["token_ids"])
    assert shapes == {
        "token_ids": ((length,), "int32"),
        "targets": ((length,), "int32"),
        "loss_weights": ((length,), "float32"),
    }


def test_a_format_string_is_repeated_for_each_turn_and_ends_in_the_end_of_text() -> None:
    tok = tokenizer(chat=None)
    columns = encoded(dialogue("is it?", "no", "sure?", "yes"), tok, template=TEMPLATE)
    end = "<|endoftext|>"
    written = f"Q: is it?\nA: no{end}Q: sure?\nA: yes{end}"
    assert tok.decode(columns["token_ids"], special=True) == written
    assert learned_text(columns, tok) == f"no{end}yes{end}"


def test_a_template_keeps_the_prompt_as_it_is_tokenized_when_asked() -> None:
    # " y" is one token, and would be taken from the prompt's last space and the response.
    tok = tokenizer(chat=None)
    task = LanguageModelling(template=TEMPLATE)
    ids, learned = task.tokens(dialogue("is it?", "yes"), tok)
    asked = task.prompt_ids(dialogue("is it?"), tok)
    assert tok.decode(asked) == "Q: is it?\nA: "
    assert tuple(ids[: len(asked)]) == asked
    assert not learned[: len(asked)].any() and learned[len(asked) :].all()


def test_a_response_is_not_given_the_space_that_begins_a_text() -> None:
    # As Llama 2's: each text by itself begins with "▁".
    vocabulary = {token: i for i, token in enumerate(("</s>", "▁", *"QAabno:"))}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    files = {
        "tokenizer.json": core.to_str(),
        "tokenizer_config.json": '{"eos_token": "</s>"}',
    }
    ids, _ = LanguageModelling(template="Q:{prompt}A:").tokens(
        dialogue("a", "no"), Tokenizer(files)
    )
    assert [core.id_to_token(i) for i in ids] == ["▁", *"Q:aA:no", "</s>"]


def test_columns_of_a_row_fill_the_gaps_of_their_names() -> None:
    tok = tokenizer(chat=None)
    example = dialogue("add", "three", input="one two", system="be nice")
    columns = encoded(example, tok, template="{system}: {prompt} [{input}] ")
    assert tok.decode(columns["token_ids"]) == "be nice: add [one two] three"


def test_a_system_message_is_given_to_dialogues_that_have_none() -> None:
    tok = tokenizer()
    for example, first in (
        (dialogue("a", "b"), "<|im_start|>system\nbe nice<|im_end|>"),
        (dialogue("a", "b", system="be bad"), "<|im_start|>system\nbe bad<|im_end|>"),
    ):
        text = tok.decode(encoded(example, tok, system="be nice")["token_ids"], special=True)
        assert text.startswith(first) and text.count("system") == 1


@pytest.mark.parametrize("name", ["causal_lm", "sft"])
def test_plain_text_is_learned_to_its_end(name) -> None:
    tok = tokenizer()
    columns = encoded({"id": "a.txt:1", "text": "so it is"}, tok, name=name)
    assert tok.decode(columns["token_ids"], special=True) == "so it is<|endoftext|>"
    assert learned_text(columns, tok) == "o it is<|endoftext|>"


def test_texts_begin_with_the_token_that_the_tokenizer_begins_them_with() -> None:
    tok = tokenizer(chat=None, bos="<|im_start|>")
    text = encoded({"id": "a", "text": "so"}, tok, name="causal_lm")
    turns = encoded(dialogue("a", "b", "c", "d"), tok, template=TEMPLATE)
    assert text["token_ids"][0] == 1
    assert np.flatnonzero(turns["token_ids"] == 1).tolist() == [0]
    assert learned_text(turns, tok) == "b<|endoftext|>d<|endoftext|>"


@pytest.mark.parametrize("fields", [{}, {"template": TEMPLATE}, {"name": "causal_lm"}])
def test_a_text_that_is_cut_keeps_its_beginning_and_gets_no_end(fields) -> None:
    tok = tokenizer()
    text = {"id": "a", "text": "a long story"}
    example = text if fields.get("name") else dialogue("is it?", "a long story")
    whole = encoded(example, tok, **fields)
    cut = encoded(example, tok, length=len(whole["token_ids"]) - 4, **fields)
    np.testing.assert_array_equal(cut["token_ids"], whole["token_ids"][:-4])
    assert cut["token_ids"][-1] not in (END, TURN_END)
    assert END not in cut["targets"][cut["loss_weights"] > 0]
    assert TURN_END not in cut["targets"][cut["loss_weights"] > 0]


def test_an_example_whose_response_is_cut_off_weighs_nothing() -> None:
    columns = encoded(dialogue("a very long prompt", "yes"), length=20)
    assert columns["loss_weights"].sum() == 0


def test_without_a_chat_template_dialogues_need_a_format() -> None:
    tok = tokenizer(chat=None)
    with pytest.raises(RecipeError, match=r"(?s)task\.template: .*no chat template.*Instruction"):
        LanguageModelling().encoder(tok, 20)
    LanguageModelling(name="causal_lm").encoder(tok, 20)


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    with pytest.raises(ModelError, match="names no token that ends a text .*eos_token"):
        LanguageModelling().encoder(tokenizer(eos=None), 20)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Q: {promt}", r"task.template: the data has nothing for \{promt\}.*mean 'prompt'"),
        ("Q: {inputs}", r"has \{prompt\}, \{system\}, \{input\}. Did you mean 'input'"),
        ("Q: {prompt", "expected '}' before end of string"),
        ("Q: }", "Single '}' encountered.*a brace of the text itself is doubled"),
        ("Q: {}", r"expected gaps such as \{prompt\}, got \{\}"),
        ("Q: {prompt.__class__}", r"expected gaps such as .* got \{prompt.__class__\}"),
        ("Q: {prompt!r}", "expected gaps such as"),
        ("Q: ", "expected a gap for what is asked"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_before_training(template, message) -> None:
    splits = Splits([dialogue("a", "b", input="c")])  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match=message):
        LanguageModelling.bind(LanguageModellingSpec(template=template), splits)


def test_doubled_braces_of_a_template_are_braces() -> None:
    assert PromptTemplate.parse("{{json}}: {prompt}").fill({"prompt": "a"}) == "{json}: a"


def test_a_bound_task_has_what_its_spec_says() -> None:
    spec = LanguageModellingSpec(loss_on="all", template="{system} {prompt}", system="s", samples=1)
    splits = Splits([dialogue("a", "b")])  # pyright: ignore[reportArgumentType]
    task = LanguageModelling.bind(spec, splits)
    assert task == LanguageModelling("sft", "all", "{system} {prompt}", "s", 1, 64)
    assert (task.kind, task.stands_on, task.label_names) == ("dialogue", "language", ())
    assert LanguageModelling(name="causal_lm").kind == "plain"


def test_a_system_message_needs_its_place_in_a_template() -> None:
    splits = Splits([dialogue("a", "b")])  # pyright: ignore[reportArgumentType]
    spec = LanguageModellingSpec(template=TEMPLATE, system="be nice")
    with pytest.raises(RecipeError, match=r"task.system: task.template has no \{system\}"):
        LanguageModelling.bind(spec, splits)
    with pytest.raises(DataError, match=r"chat.jsonl:1: has a system message, and task.template"):
        encoded(dialogue("a", "b", system="be nice"), template=TEMPLATE)


def test_a_format_string_refuses_messages_of_other_roles() -> None:
    example = {"id": "chat.jsonl:1", "messages": [{"role": "tool", "content": "a"}]}
    with pytest.raises(DataError, match="chat.jsonl:1: .* got one of 'tool'"):
        encoded(example, template=TEMPLATE)


def test_a_question_is_the_dialogue_up_to_its_last_response() -> None:
    tok, task = tokenizer(), LanguageModelling()
    question = task.question(dialogue("is it?", "yes"), tok)
    assert (question.text, question.reference) == ("is it?", "yes")
    assert tok.decode(question.ids, special=True) == (
        "<|im_start|>user\nis it?<|im_end|>\n<|im_start|>assistant\n"
    )
    longer = task.question(dialogue("a", "b", "c", "d"), tok)
    assert (longer.text, longer.reference) == ("user: a\nassistant: b\nuser: c", "d")


def test_a_question_of_plain_text_is_how_it_goes_on() -> None:
    tok = tokenizer()
    question = LanguageModelling(name="causal_lm").question({"id": "a", "text": "so it is"}, tok)
    assert question.text + question.reference == "so it is" and question.reference


@pytest.fixture(scope="module")
def llama():
    return model()


@pytest.fixture(scope="module")
def token_losses(llama):
    """-log p of each target by NumPy, of whole logits."""

    def outputs(inputs):
        given = {name: jnp.asarray(inputs[name]) for name in ("token_ids", "padding_mask")}
        log_p = log_softmax(np.asarray(llama.apply(given), np.float64), axis=-1)
        targets = np.asarray(inputs["targets"])
        return -np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]

    return outputs


EXAMPLES = [dialogue("is it?", "yes"), dialogue("and that one?", "no, not at all, " * 3)]


def batches(task, source, length=64):
    return SequenceBatches(
        source,
        task.encoder(tokenizer(), length),
        batch_size=2,
        seed=0,
        shuffle=False,
        buckets=buckets(length),
        pad_id=END,
        workers=0,
    ).epoch(0)


def by_hand(llama, example, length=64):
    """Losses of the response's tokens, one after the other."""
    tok = llama.backbone.tokenizer
    text = tok.chat(example["messages"])
    ids = tok.encode(text, special=False).ids[:length]
    response = text.index("assistant\n") + len("assistant\n")
    offsets = tok.encode(text, special=False).offsets[:length, 0]
    end = text.rindex("<|im_end|>")
    log_p = log_softmax(llama.logits([ids])[0].astype(np.float64), axis=-1)
    places = [t for t in range(1, len(ids)) if response <= offsets[t] <= end]
    return [-log_p[t - 1, ids[t]] for t in places]


def test_the_loss_of_examples_is_that_of_their_response_tokens(llama, token_losses) -> None:
    task = LanguageModelling()
    found = evaluate(task, EXAMPLES, batches(task, EXAMPLES), token_losses)
    losses = by_hand(llama, EXAMPLES[0]) + by_hand(llama, EXAMPLES[1])
    assert found["tokens"] == len(losses)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(np.mean(losses) / np.log(2), rel=1e-5)
    assert (found["examples"], found["examples_without_loss"]) == (2, 0)


def test_the_loss_that_the_model_gives_is_that_of_whole_logits(llama, token_losses) -> None:
    task = LanguageModelling()
    found = evaluate(task, EXAMPLES, batches(task, EXAMPLES), llama.apply)
    whole = evaluate(task, EXAMPLES, batches(task, EXAMPLES), token_losses)
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in whole.items()}


def test_the_training_loss_sums_what_counts_and_nothing_else(token_losses) -> None:
    task = LanguageModelling()
    (batch,) = batches(task, EXAMPLES)
    outputs = token_losses(task.inputs(batch))
    broken = np.where(batch["loss_weights"] > 0, outputs, np.nan)
    total, weight = task.loss(jnp.asarray(broken), batch)
    found = evaluate(task, EXAMPLES, [batch], token_losses)
    assert float(total) / float(weight) == pytest.approx(found["loss"], rel=1e-5)
    assert float(weight) == found["tokens"]


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    # A mean over all positions, padding and prompts included, would be far less.
    task = LanguageModelling()
    (batch,) = batches(task, EXAMPLES)
    losses = np.where(batch["loss_weights"] > 0, np.log(99), 0.0)
    total, weight = task.loss(jnp.asarray(losses), batch)
    assert float(total) / float(weight) == pytest.approx(np.log(99), rel=1e-6)
    found = evaluate(task, EXAMPLES, [batch], lambda inputs: losses)
    assert found["perplexity"] == pytest.approx(99, rel=1e-6)


def test_an_example_without_loss_is_counted_and_changes_nothing(token_losses) -> None:
    task = LanguageModelling()
    source = [EXAMPLES[0], dialogue("a prompt " * 9, "yes")]
    found = evaluate(task, source, batches(task, source), token_losses)
    alone = evaluate(task, source[:1], batches(task, source[:1]), token_losses)
    assert (found["examples"], found["examples_without_loss"]) == (2, 1)
    assert (alone["examples"], alone["examples_without_loss"]) == (1, 0)
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_examples_of_which_nothing_is_left_are_refused(token_losses) -> None:
    task = LanguageModelling()
    source = [dialogue("a prompt " * 9, "yes")]
    with pytest.raises(DataError, match="none of the 1 examples, such as chat.jsonl:1"):
        evaluate(task, source, batches(task, source), token_losses)
    with pytest.raises(DataError, match="at least one example"):
        evaluate(task, source, [], token_losses)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    task = LanguageModelling()
    with pytest.raises(ModelError, match="weights have diverged"):
        evaluate(
            task,
            EXAMPLES,
            batches(task, EXAMPLES),
            lambda inputs: np.full(inputs["targets"].shape, np.inf),
        )


def test_a_huge_loss_has_a_perplexity_that_json_can_hold() -> None:
    task = LanguageModelling()
    found = evaluate(
        task,
        EXAMPLES,
        batches(task, EXAMPLES),
        lambda inputs: np.full(inputs["targets"].shape, 1e4),
    )
    assert np.isfinite(found["perplexity"])


def test_predictions_are_how_likely_each_text_is(llama, token_losses) -> None:
    task, tok = LanguageModelling(), tokenizer()
    items = [EXAMPLES[1]["messages"], "so it is", EXAMPLES[0]]
    found = task.predict(items, tok, 64, token_losses)
    assert [each.id for each in found][1:] == ["so it is", "chat.jsonl:1"]
    for each, example in ((found[0], EXAMPLES[1]), (found[2], EXAMPLES[0])):
        losses = by_hand(llama, example)
        assert each.tokens == len(losses)
        assert each.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found[1].tokens == len("so it is")
    (alone,) = task.predict(EXAMPLES[0]["messages"], tok, 64, token_losses)
    assert alone.loss == pytest.approx(found[2].loss, rel=1e-6)
    assert alone.to_json()["perplexity"] == alone.perplexity
    assert str(found[2]) == f"chat.jsonl:1: perplexity {found[2].perplexity:.2f} over 4 tokens"


def test_a_text_without_a_token_to_judge_says_so(token_losses) -> None:
    items = dialogue("long " * 9, "yes")
    (found,) = LanguageModelling().predict(items, tokenizer(), 40, token_losses)
    assert (found.tokens, found.loss, found.perplexity) == (0, None, None)
    assert str(found) == "chat.jsonl:1: no token to judge"


def test_items_that_are_no_texts_are_refused(token_losses) -> None:
    with pytest.raises(DataError, match=r"items\[1\]: expected a text, a list of messages"):
        LanguageModelling().predict(["so", 3], tokenizer(), 40, token_losses)
