"""The selectors on a model with adapters: their own word, and whose the others are."""

import pytest

from tests.unit.methods import small
from tunekit.errors import SelectionError
from tunekit.methods.spec import LoRA
from tunekit.models.backbone import Backbone
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.selection import resolve_selection

_NAME = "adapters/mine/backbone/vit_encoder/transformer_block_{}/mha/{}/{}"


def _adapted(block: int) -> set[str]:
    leaves = ("lora_a", "lora_b", "bias")
    return {_NAME.format(block, x, leaf) for x in ("query", "value") for leaf in leaves}


@pytest.fixture(scope="module")
def bare() -> Model:
    body = Backbone(small.vit(), ImagePreprocessing((32, 32)), "tokens", "vit", "tiny", 1)
    return Model(body, ("cat", "dog"))


@pytest.fixture(scope="module")
def model() -> Model:
    body = Backbone(small.vit(), ImagePreprocessing((32, 32)), "tokens", "vit", "tiny", 1)
    return Model(body, ("cat", "dog")).add_adapter("mine", LoRA(rank=2, bias="lora_only"))


def test_adapter_selects_every_weight_of_the_adapters(model):
    assert resolve_selection("adapter", model) == _adapted(1) | _adapted(2)


def test_an_adapter_belongs_to_the_depth_that_it_sits_on(model):
    assert resolve_selection("adapter, !blocks[0]", model) == _adapted(2)
    assert resolve_selection("blocks[1]", model) >= _adapted(2)


@pytest.mark.parametrize("kind", ["bias", "norm", "embeddings"])
def test_kinds_of_variables_are_the_networks_own(model, bare, kind):
    assert resolve_selection(kind, model) == resolve_selection(kind, bare)


def test_an_adapter_that_is_not_there_is_an_error_with_the_next_move(bare):
    with pytest.raises(SelectionError, match="'adapter' matches no variable.*call add_adapter"):
        resolve_selection("adapter", bare)
