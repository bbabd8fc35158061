"""What is written with a cache of keys and values is what passes over the whole text would give."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from tests.reference import text_folders
from tests.unit.methods import small, texts
from tunekit.errors import ModelError
from tunekit.methods.spec import IA3, Bottleneck, LoRA, PrefixTuning, PromptTuning, VeRA
from tunekit.models.generation import Generator
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.sampling import Greedy, Sampling

PROMPTS = [[3, 5], [7, 2, 4, 1, 6], [9]]
NEW = 4
pytestmark = pytest.mark.filterwarnings("ignore:.*Layer 'attn':UserWarning")


def writer(family: str, **changes: Any) -> Model:
    """A small language model of KerasHub's, always with the same values."""
    body = texts.NETWORKS[family]()
    if changes:
        with without_values():
            changed = type(body).from_config({**body.get_config(), **changes})
        body = small.filled(changed)
    name = {"gpt2": "GPT2"}.get(family, family.capitalize())
    return load_model(getattr(keras_hub().models, f"{name}CausalLM")(body))


@functools.cache
def shared(family: str) -> Model:
    """Tests leave it as they find it."""
    return writer(family)


def likeliest(model: Model, prompt: list[int], count: int = NEW) -> list[int]:
    """The tokens that follow, each by a pass over all before it."""
    ids = list(prompt)
    for _ in range(count):
        # One length, as one program.
        padded, known = np.zeros((1, 9), np.int32), np.zeros((1, 9), np.int32)
        padded[0, : len(ids)], known[0, : len(ids)] = ids, 1
        inputs: Any = {"token_ids": padded, "padding_mask": known}
        logits = model.logits(inputs)
        ids.append(int(logits[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


def check_equal_to_whole_passes(model: Model) -> list[list[int]]:
    """Of a batch of prompts of several lengths, with the adapters that act."""
    found = Generator(model).generate(PROMPTS, max_new_tokens=NEW)
    assert found == [likeliest(model, prompt) for prompt in PROMPTS]
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_a_batch_of_prompts_of_several_lengths_equals_whole_passes_over_each(family):
    found = check_equal_to_whole_passes(shared(family))
    assert all(len(row) == NEW for row in found)


def test_a_window_of_attention_is_counted_in_tokens_and_not_in_columns():
    """Of the same values, a Mistral computes what a Llama does, but for its window."""
    windowed = check_equal_to_whole_passes(writer("mistral", sliding_window=2))
    assert windowed != Generator(shared("llama")).generate(PROMPTS, max_new_tokens=NEW)


def test_a_gpt2_from_a_folder_equals_whole_passes(tmp_path):
    check_equal_to_whole_passes(load_model(text_folders.write("gpt2", tmp_path)))


STACKS = {
    "llama": (LoRA(rank=2), IA3(), PrefixTuning(length=3, within="last 1")),
    "gpt2": (
        LoRA(rank=2, dora=True),
        VeRA(rank=4),
        Bottleneck(kind="houlsby", reduction=4),
        PromptTuning(length=2),
    ),
}


@pytest.mark.parametrize("family", STACKS)
def test_adapters_that_act_together_equal_whole_passes_also_on_packed_kernels(family):
    model, rng = writer(family), np.random.default_rng(0)
    if family == "llama":
        model.quantize("int8")
    for number, spec in enumerate(STACKS[family]):
        model.add_adapter(str(number), spec)
        for variable in model.adapters[str(number)].adapter.variables.values():
            if variable.trainable:
                variable.assign(variable + 0.5 * rng.normal(size=variable.shape))
    model.set_adapter([str(number) for number in range(len(STACKS[family]))])
    adapted = check_equal_to_whole_passes(model)
    assert adapted != Generator(shared(family)).generate(PROMPTS, max_new_tokens=NEW)


def test_adapters_that_are_put_aside_leave_the_base_and_its_programs():
    model = shared("gpt2")
    generator = Generator(model)
    base, compiled = generator.generate(PROMPTS, max_new_tokens=NEW), generator.compiled()
    model.add_adapter("prompt", PromptTuning(length=2))
    try:
        with model.adapters_disabled():
            assert generator.generate(PROMPTS, max_new_tokens=NEW) == base
    finally:
        model.remove_adapter("prompt")
    assert generator.compiled() == compiled > 0


def test_many_lengths_and_samplers_share_one_program_of_each_kind():
    """KerasHub's generate() compiles for every length that it is asked for."""
    model = writer("llama")
    generator = Generator(model)
    for length in range(1, 9):
        prompt = list(range(1, length + 1))
        sampler = Greedy() if length % 2 else Sampling(0.1 * length, top_k=length)
        rows = generator.generate(
            [prompt], max_new_tokens=17 - length, sampler=sampler, stop_ids=[length]
        )
        assert len(rows[0]) <= 17 - length
    assert generator.compiled() == 2
    generator.generate([[1] * 9], max_new_tokens=23)  # a cache of 64 columns in place of 32
    assert generator.compiled() == 3
    assert Generator(model).compiled() == 3
    model.quantize("int8")
    assert generator.compiled() == 0  # they are of kernels that are no more


def test_weights_are_no_part_of_the_program():
    model = shared("llama")
    generator = Generator(model)
    before, compiled = generator.generate(PROMPTS, max_new_tokens=NEW), generator.compiled()
    rng, variables = np.random.default_rng(1), model.variables().values()
    values = [variable.value for variable in variables]
    try:
        for variable in variables:
            variable.assign(variable + rng.normal(size=variable.shape))
        assert check_equal_to_whole_passes(model) != before
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    assert generator.compiled() == compiled


def test_a_stop_id_ends_its_own_row_and_is_not_returned():
    model = shared("llama")
    whole = Generator(model).generate(PROMPTS, max_new_tokens=NEW)
    stop = whole[1][2]
    found = Generator(model).generate(PROMPTS, max_new_tokens=NEW, stop_ids={stop})
    for row, all_of_it in zip(found, whole, strict=True):
        assert row == (all_of_it[: all_of_it.index(stop)] if stop in all_of_it else all_of_it)
    assert found[1] == whole[1][:2]


def test_pieces_come_as_they_are_written_and_together_are_the_whole():
    generator = Generator(shared("llama"))
    pieces = list(generator.stream(PROMPTS, max_new_tokens=NEW, every=2))
    assert [len(piece[0]) for piece in pieces] == [1, 2, 1]
    told: list[tuple[int, int]] = []
    whole = generator.generate(
        PROMPTS, max_new_tokens=NEW, on_token=lambda row, token: told.append((row, token))
    )
    for row, tokens in enumerate(whole):
        assert sum((piece[row] for piece in pieces), []) == tokens
        assert [token for other, token in told if other == row] == tokens


def test_what_a_row_draws_depends_on_the_seed_and_its_place_and_not_on_the_batch():
    generator, prompts = Generator(shared("llama")), [[3, 5]] * 3
    options: dict[str, Any] = {"max_new_tokens": NEW, "sampler": Sampling(2.0)}
    rows = generator.generate(prompts, **options, seed=4)
    assert rows == generator.generate(prompts, **options, seed=4)
    assert rows == generator.generate([*prompts, [1]], **options, seed=4)[:3]
    assert len({tuple(row) for row in rows}) == 3
    assert rows != generator.generate(prompts, **options, seed=5)


def test_learned_positions_are_used_to_their_last():
    model, prompt = shared("gpt2"), [1, 2, 3, 4, 5, 6, 7, 8]
    assert model.backbone.max_length_tokens == len(prompt) + NEW
    found = Generator(model).generate([prompt, [1], [2]], max_new_tokens=NEW)
    assert len(found[0]) == NEW
    assert found[0][:1] == likeliest(model, prompt, 1)


def test_nothing_asked_for_gives_nothing():
    generator = Generator(shared("llama"))
    assert generator.generate([], max_new_tokens=3) == []
    assert generator.generate(PROMPTS, max_new_tokens=0) == [[], [], []]


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([[1], []], 3, "prompt 1 is empty"),
        ([[1, 13]], 3, "token id 13 .* outside of the vocabulary: expected 0 to 12"),
        ([[1] * 10], 3, "prompt 0 has 10 tokens, and with 3 new .* the 12 .*: ask for at most 2"),
        ([[1] * 12], 1, "prompt 0 has 12 tokens.*made for: shorten it"),
        ([[1]], -1, "max_new_tokens: expected a number from 0 on, got -1"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(prompts, new, message):
    with pytest.raises(ModelError, match=message):
        Generator(shared("gpt2")).generate(prompts, max_new_tokens=new)


def test_learned_positions_of_an_adapter_take_room_from_the_text():
    """Beyond its last position a network reads NaN."""
    model = shared("gpt2").add_adapter("prompt", PromptTuning(length=2))
    try:
        with pytest.raises(ModelError, match="8 tokens, 4 new ones and 2 .* more than the 12 pos"):
            Generator(model).generate([[1] * 8], max_new_tokens=NEW)
    finally:
        model.remove_adapter("prompt")


def test_models_that_write_no_text_are_refused():
    with pytest.raises(ModelError, match="no causal language model, so it writes no text"):
        Generator(load_model(texts.NETWORKS["bert"]()))
    with pytest.raises(ModelError, match="no causal language model"):
        Generator(load_model(texts.NETWORKS["llama"]()))  # hidden states alone
    classifier = writer("llama").replace_head(["good", "bad"])
    with pytest.raises(ModelError, match="head for the labels good, bad in the place of"):
        Generator(classifier)


def test_an_attention_of_unknown_kind_is_named():
    sizes = {"vocabulary_size": 13, "num_layers": 1, "hidden_dim": 8, "intermediate_dim": 12}
    body = keras_hub().models.BloomBackbone(**sizes, num_heads=2)
    model = load_model(keras_hub().models.BloomCausalLM(body))
    with pytest.raises(ModelError, match="not known for 'backbone/.*', a BloomAttention"):
        Generator(model).generate([[1]], max_new_tokens=1)
