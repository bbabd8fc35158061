from __future__ import annotations

import pytest

from tests.reference import text_folders
from tests.unit.tasks.small_language import model
from tunekit.errors import SelectionError
from tunekit.methods.spec import LoRA, Plain, named_method
from tunekit.models.loading import load_model
from tunekit.models.trainable import put, resolve_trainable


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """A Llama whose language head has a kernel of its own."""
    return load_model(text_folders.write("llama-untied", tmp_path_factory.mktemp("untied")))


def test_a_language_head_is_part_of_the_network_and_no_adapter_trains_it(untied):
    assert "heads/lm_head/kernel" in untied.weight_names()
    method = LoRA(rank=2)
    put(method, untied)
    trained = resolve_trainable(("all",), untied, method)
    assert trained and all(name.startswith("adapters/") for name in trained)
    assert "heads/lm_head/kernel" not in resolve_trainable(("all",), untied, named_method("norm"))
    for name in ("full", "head"):
        assert "heads/lm_head/kernel" in resolve_trainable(("all",), untied, Plain(name))


def test_a_head_that_shares_the_embedding_has_nothing_to_train_by_itself():
    with pytest.raises(SelectionError, match="method 'head' trains none"):
        resolve_trainable(("all",), model(), Plain("head"))
