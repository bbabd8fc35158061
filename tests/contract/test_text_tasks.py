"""What holds for every task of texts, on an encoder and on a decoder, however it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunekit
from tests.contract.text_families import FAMILIES, LENGTH, write_rows
from tunekit import OptimizerSpec, finetune, load_model
from tunekit.data.sequences import SequenceBatches
from tunekit.methods.spec import LoRA
from tunekit.models.model import Model
from tunekit.tasks.spec import EmbeddingSpec, LanguageModellingSpec

TASKS: dict[str, Any] = {
    "classification": "text_classification",
    "multi_label": "text_classification",
    "pairs": "text_classification",
    "regression": "text_regression",
    "tokens": "token_classification",
    "span_qa": "span_qa",
    "embedding": "embedding",
    "embedding_labels": EmbeddingSpec(contrast="labels", pairs_per_text=2),
    "masked_lm": "masked_lm",
    "causal_lm": LanguageModellingSpec(name="causal_lm", samples=0),
    "sft": LanguageModellingSpec(name="sft", samples=0),
}
"""By the name of their data in `text_families`."""
METHODS: dict[str, Any] = {
    "full": "full",
    "head": "head",
    "lora": LoRA(rank=2, targets="attention"),
}
VECTORS = ("embedding", "embedding_labels")
WRITING = ("causal_lm", "sft")
# Every task, method and family; not all of their combinations, each of which is to be compiled.
CASES = [
    *(("bert", task, "head") for task in ("classification", "multi_label", "pairs", "regression")),
    *(("bert", task, "lora") for task in ("tokens", "span_qa", *VECTORS, "masked_lm")),
    *(("bert", task, "full") for task in ("classification", "masked_lm")),
    *(("llama", task, "lora") for task in ("embedding", *WRITING)),
    ("llama", "sft", "full"),
]
ITEMS: dict[str, Any] = {
    "pairs": [("good fish", "bad tea")],
    "tokens": [["good", "fish", "is", "big"]],
    "span_qa": [("what is it", "the fish is good")],
    "masked_lm": ["the [MASK] is big"],
    "sft": [[{"role": "user", "content": "tea"}, {"role": "assistant", "content": "good"}]],
}
QUICK: dict[str, Any] = {
    "batch_size": 4,
    "max_length": LENGTH,
    "epochs": 1,
    "learning_rate": 0.1,
    # Less to compile than Adam, and its momentum is a state too.
    "optimizer": OptimizerSpec(name="sgd"),
    "validation": 0.0,
    "progress": "none",
    "seed": 3,
}


def tune(model: Any, task: str, method: str, folder: Path, **changes: Any) -> tunekit.Result:
    data = write_rows(task, folder)
    keywords = {**QUICK, "method": METHODS[method], **changes}
    return finetune(model, data, task=TASKS[task], **keywords)


def small_model(family: str, folder: Path, **options: Any) -> Model:
    return load_model(FAMILIES[family](folder / family, **options))


def values(model: Model) -> dict[str, np.ndarray]:
    forward = model.forward()
    return {n: np.array(v) for n, v in forward.values().items() if forward.roles[n] != "seed"}


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@dataclass(frozen=True)
class Tuned:
    """A model after a run, and its network's values before."""

    task: str
    method: str
    before: dict[str, np.ndarray]
    result: tunekit.Result


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    family, task, method = request.param
    folder = tmp_path_factory.mktemp("tuned")
    model = small_model(family, folder, dropout=0.0)
    before = values(model)
    return Tuned(task, method, before, tune(model, task, method, folder))


def test_what_is_frozen_is_bit_identical_and_what_trains_moves(tuned: Tuned) -> None:
    after = values(tuned.result.model)
    body = [name for name in tuned.before if name.startswith("backbone/")]
    moved = [name for name in body if not np.array_equal(tuned.before[name], after[name])]
    if tuned.method == "full":
        assert len(moved) > len(body) / 2
    else:
        assert not moved
        assert any(name.startswith(("heads/", "adapters/")) for name in after)
    assert np.isfinite([row["loss"] for row in tuned.result.history]).all()


def test_a_saved_result_predicts_the_same_after_loading(tuned: Tuned, tmp_path: Path) -> None:
    loaded = tunekit.load(tuned.result.save(tmp_path / "out"))
    assert loaded.task == tuned.result.task
    assert_equal(values(tuned.result.model), values(loaded.model))
    items = ITEMS.get(tuned.task, ["good fish", "the soup was cold"])
    np.testing.assert_equal(shown(loaded.predict(items)), shown(tuned.result.predict(items)))


def shown(predictions: Any) -> list[Any]:
    return [p.to_json() if hasattr(p, "to_json") else np.asarray(p) for p in predictions]


@pytest.mark.parametrize(
    ("family", "task", "method"),
    [
        ("bert", "pairs", "head"),
        ("bert", "tokens", "head"),
        ("bert", "embedding_labels", "lora"),
        ("bert", "masked_lm", "lora"),
        ("llama", "sft", "lora"),
    ],
)
def test_micro_batches_equal_one_batch(family, task, method, tmp_path):
    """Pairs against the rest of the batch alone do not: the rest is smaller then."""
    found = []
    for accumulate in (1, 4):
        model = small_model(family, tmp_path, dropout=0.0)
        tune(model, task, method, tmp_path, accumulate=accumulate)
        found.append(values(model))
    for name in found[0]:
        # The gradients are summed in another order.
        np.testing.assert_allclose(found[0][name], found[1][name], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("task", ["embedding_labels", "masked_lm"])
def test_resuming_equals_the_uninterrupted_run(task, tmp_path, monkeypatch):
    """With dropout, hidden words and drawn pairs that are others in every pass."""

    def started(name: str, **changes: Any) -> tunekit.Result:
        model = small_model("bert", tmp_path)
        changes |= {"optimizer": OptimizerSpec(name="sgd", ema=0.5), "out": tmp_path / name}
        return tune(model, task, "lora", tmp_path, epochs=3, **changes)

    whole = started("whole")

    from tunekit.training.trainer import Trainer

    end_pass = Trainer.end_pass

    def killed(self, state, epoch, *rest):
        end_pass(self, state, epoch, *rest)
        if epoch == 1:
            raise OSError("killed")

    monkeypatch.setattr(Trainer, "end_pass", killed)
    with pytest.raises(OSError, match="killed"):
        started("killed")
    monkeypatch.undo()
    resumed = started("killed", resume=True)
    assert_equal(values(whole.model), values(resumed.model))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_run_that_breaks_off_before_a_step_leaves_the_model_as_it_was(
    family, error, tmp_path, monkeypatch
):
    model = small_model(family, tmp_path)
    before = values(model)
    ids = np.array([[9, 10, 11]], np.int32)
    logits = model.logits(ids)

    def breaks(self, epoch, start_step=0):
        raise error("the disk is gone")
        yield

    monkeypatch.setattr(SequenceBatches, "epoch", breaks)
    task = "masked_lm" if family == "bert" else "sft"
    with pytest.raises(error, match="the disk is gone"):
        tune(model, task, "full", tmp_path)
    assert_equal(before, values(model))
    np.testing.assert_array_equal(model.logits(ids), logits)


def test_an_error_after_steps_gives_weights_and_language_head_back(tmp_path, monkeypatch):
    model = small_model("llama", tmp_path)
    before = values(model)
    whole = SequenceBatches.epoch

    def breaks(self, epoch, start_step=0):
        for number, batch in enumerate(whole(self, epoch, start_step)):
            if number == 1:
                raise OSError("the disk is gone")
            yield batch

    monkeypatch.setattr(SequenceBatches, "epoch", breaks)
    with pytest.raises(OSError, match="the disk is gone"):
        tune(model, "embedding", "lora", tmp_path)
    assert_equal(before, values(model))
    assert model.backbone.language_head is not None
    assert model.keras.output_shape[-1] == 99


@pytest.mark.parametrize("task", WRITING)
def test_the_first_step_of_packed_texts_has_the_loss_of_unpacked_ones(task, tmp_path):
    """All of the data in one step. Which words are hidden follows the row: not for masked_lm."""
    losses = []
    for packing in (False, True):
        model = small_model("llama", tmp_path)
        result = tune(model, task, "lora", tmp_path, packing=packing, batch_size=8)
        assert result.history[-1]["step"] == 1
        losses.append(result.history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("task", ["embedding", "classification"])
def test_a_language_model_in_memory_gives_hidden_states_where_a_task_stands_on_them(task, tmp_path):
    """As the same one from its folder: its language head has no part in it."""
    folder = FAMILIES["llama"](tmp_path / "llama")
    named = tune(folder, task, "lora", tmp_path)
    given = tune(load_model(folder), task, "lora", tmp_path)
    assert_equal(values(named.model), values(given.model))
    assert [row["loss"] for row in named.history] == [row["loss"] for row in given.history]


def test_a_tagger_is_given_a_head_for_whole_texts(tmp_path):
    tagger = tune(small_model("bert", tmp_path), "tokens", "head", tmp_path).model
    result = tune(tagger, "classification", "head", tmp_path)
    assert result.predict("good fish")[0].label in ("good", "bad")
    assert result.model.head_spec.pooling == "auto"
