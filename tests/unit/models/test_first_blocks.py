"""Backbones that keep their first blocks: the values of the whole, saved and read back."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from tests.unit.models.backbone_families import FAMILIES
from tunekit import saved
from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, intercept
from tunekit.models.backbone import Backbone
from tunekit.models.depth import block_ends
from tunekit.models.first_blocks import with_first_blocks
from tunekit.models.initialisation import without_values
from tunekit.models.loading import load_backbone
from tunekit.models.model import Model
from tunekit.models.spec import BackboneSpec
from tunekit.names import layer_names, structural_names

_PIXELS = np.random.default_rng(0).uniform(0, 1, (2, 32, 32, 3)).astype("float32")
_TRANSFORMERS = {"vit": "vit_encoder/ln", "dinov2": "layernorm", "dinov3": "layernorm"}


def _loaded(source: keras.Model, blocks: int | None = None) -> Backbone:
    return load_backbone(source, BackboneSpec(blocks=blocks))


def _filled(build: Callable[[], keras.Model]) -> keras.Model:
    """What `build` builds, with values that no layer starts with."""
    with without_values():
        model = build()
    rng = np.random.default_rng(1)
    for variable in model.variables:
        if variable.dtype == "float32":
            variable.assign(rng.uniform(0.1, 0.9, variable.shape) - 0.4 * (variable.ndim > 1))
    return model


def _activation(backbone: Backbone, block: int) -> Any:
    """What goes on from that block of the whole network."""
    end = block_ends(backbone.keras)[block]
    seen = []

    def noted(call: Call) -> Call:
        def noting_call(*args: Any, **kwargs: Any) -> Any:
            seen.append(call(*args, **kwargs))
            return seen[-1]

        return noting_call

    ends: Any = {end: noted}
    with intercept(ends):
        backbone.keras(_PIXELS, training=False)
    (activation,) = seen
    return activation


def _residual(width: tuple[int, ...] = (4, 4, 4)) -> keras.Model:
    """Residual blocks and a final layer norm."""
    layers = keras.layers
    x = inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(width[0], 4, strides=4)(x)
    for channels in width:
        y = layers.Conv2D(channels, 3, padding="same")(x)
        shortcut = x if x.shape[-1] == channels else layers.Conv2D(channels, 1)(x)
        x = shortcut + layers.Conv2D(channels, 1, activation="gelu")(y)
    return keras.Model(inputs, layers.LayerNormalization(name="last_norm")(x))


def _plain() -> keras.Model:
    layers = keras.layers
    kernels = [layers.Conv2D(4, 3, strides=2, activation="relu") for _ in range(4)]
    return keras.Sequential([keras.Input((32, 32, 3)), *kernels])


def _nested() -> keras.Model:
    inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, _plain()(keras.layers.Rescaling(1 / 2)(inputs)))


@pytest.mark.parametrize("name", ["resnet", "resnet_v2", "densenet"])
def test_a_convolutional_network_ends_with_what_its_block_gave(name):
    source = _filled(FAMILIES[name].build)
    for blocks in (1, 2):
        cut = _loaded(source, blocks)
        assert len(block_ends(cut.keras)) == blocks
        expected = _activation(_loaded(source), blocks - 1)
        np.testing.assert_array_equal(cut.keras(_PIXELS), expected)
        assert (cut.dim, cut.pretrained_head) == (expected.shape[-1], None)


@pytest.mark.parametrize("name", _TRANSFORMERS)
def test_a_transformer_ends_with_its_final_norm_of_what_its_block_gave(name):
    source = _filled(FAMILIES[name].build)
    whole = _loaded(source)
    layers = layer_names(whole.keras).items()
    norm = [layer for path, layer in layers if path.endswith(_TRANSFORMERS[name])][-1]
    for blocks in (1, 2):
        cut = _loaded(source, blocks)
        assert len(block_ends(cut.keras)) == blocks
        expected = _activation(whole, blocks - 1)
        np.testing.assert_array_equal(_activation(cut, blocks - 1), expected)
        np.testing.assert_array_equal(cut.keras(_PIXELS), norm(expected))
        assert cut.prefix_tokens == whole.prefix_tokens


@pytest.mark.parametrize("build", [_plain, _nested])
def test_a_network_of_ones_own_is_cut_also_inside_a_nested_model(build):
    source = _filled(build)
    cut = _loaded(source, 2)
    np.testing.assert_array_equal(cut.keras(_PIXELS), _activation(_loaded(source), 1))


def test_a_final_layer_norm_stays_where_its_width_fits():
    source = _filled(lambda: _residual((4, 4, 8, 8)))
    norm = source.get_layer("last_norm")
    activation = _activation(_loaded(source), 2)
    np.testing.assert_array_equal(_loaded(source, 3).keras(_PIXELS), norm(activation))
    np.testing.assert_array_equal(
        _loaded(source, 2).keras(_PIXELS), _activation(_loaded(source), 1)
    )


@pytest.mark.parametrize("name", ["resnet", "vit", "dinov2"])
def test_what_is_kept_has_the_names_and_values_of_the_whole(name):
    source = _filled(FAMILIES[name].build)
    whole = structural_names(_loaded(source).keras)
    kept = structural_names(_loaded(source, 2).keras)
    assert 0 < len(kept) < len(whole)
    for variable_name, variable in kept.items():
        np.testing.assert_array_equal(variable, whole[variable_name])


@pytest.mark.parametrize("name", ["resnet", "vit", "deit", "dinov2"])
def test_a_shortened_model_is_described_and_built_again(name):
    model = Model(_loaded(_filled(FAMILIES[name].build), 2), ["cat", "dog"])
    copy = saved.rebuilt(saved.described(model))
    variables = copy.variables()
    assert list(variables) == list(model.variables())
    for variable_name, variable in model.variables().items():
        variables[variable_name].assign(variable.value)
    saved.check_same(model, copy)


def test_all_blocks_are_the_whole_network_with_its_classifier():
    body = _residual()
    x = keras.layers.GlobalAveragePooling2D()(body.outputs[0])
    source = keras.Model(body.inputs, keras.layers.Dense(5, activation="softmax")(x))
    whole = _loaded(source, 3)
    assert whole.pretrained_head is not None
    assert "last_norm" in {layer.name for layer in whole.keras.layers}
    assert _loaded(source, 2).pretrained_head is None


def test_more_blocks_than_there_are_is_an_error():
    message = r"backbone.blocks: '.*' has 3 blocks, so its first 4 cannot be kept; expected 1 to 3"
    with pytest.raises(ModelError, match=message):
        _loaded(_residual(), 4)


# KerasHub's own, of Swin's masks and of MiT's layers that cannot be built from their settings.
@pytest.mark.filterwarnings("ignore:.*Layer 'attn':UserWarning", "ignore:`build:UserWarning")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin", "the blocks in 'swin_transformer_backbone' are spread over stages"),
        ("mit", "a part of a KerasHub 'mi_t_backbone' could not be saved"),
    ],
)
def test_what_cannot_be_cut_says_why_and_what_to_do(name, reason):
    message = f"cannot be cut after block 1 of 5: {reason}.*choose with 'train' which of them move"
    with pytest.raises(ModelError, match=message):
        _loaded(_filled(FAMILIES[name].build), 1)


def test_a_block_that_ends_with_a_shared_layer_is_not_cut_after():
    relu = keras.layers.ReLU(name="shared_relu")
    x = inputs = keras.Input((32, 32, 3))
    for _ in range(2):
        x = relu(keras.layers.Add()([x, keras.layers.Conv2D(3, 3, padding="same")(x)]))
    with pytest.raises(ModelError, match="'shared_relu' runs 2 times"):
        _loaded(keras.Model(inputs, x), 1)


@keras.saving.register_keras_serializable("tunekit_test")
class _ForgetfulEncoder(keras.layers.Layer):
    """Its configuration leaves the norms' epsilon out."""

    def __init__(self, num_layers: int, epsilon: float = 1e-6, **options: Any) -> None:
        super().__init__(**options)
        self.num_layers = num_layers
        self.parts = [_Part(epsilon, name=f"part_{i}") for i in range(num_layers)]

    def build(self, shape: tuple[int, ...]) -> None:
        for part in self.parts:
            part.build(shape)

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_layers": self.num_layers}


class _Part(keras.layers.Layer):
    def __init__(self, epsilon: float, **options: Any) -> None:
        super().__init__(**options)
        self.norm = keras.layers.LayerNormalization(epsilon=epsilon)
        self.up, self.down = keras.layers.Dense(4), keras.layers.Dense(3)

    def build(self, shape: tuple[int, ...]) -> None:
        self.norm.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], 4))

    def call(self, x: Any) -> Any:
        return x + self.down(self.up(self.norm(x)))


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_an_encoder_that_forgets_a_setting_is_not_cut_into_another_network(epsilon):
    inputs = keras.Input((32, 32, 3))
    tokens = keras.layers.Reshape((-1, 3))(inputs)
    source = keras.Model(inputs, _ForgetfulEncoder(3, epsilon, name="encoder")(tokens))
    backbone = Backbone(source, None, "tokens", "any", "tiny")  # type: ignore[arg-type]
    if epsilon == 1e-6:
        assert len(block_ends(with_first_blocks(backbone, 2).keras)) == 2
    else:
        with pytest.raises(ModelError, match="'encoder' built with fewer blocks is not itself"):
            with_first_blocks(backbone, 2)
