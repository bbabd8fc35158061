"""The door to backbones: the bundled one, KerasHub folders and names, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from tunekit.errors import ModelError
from tunekit.models import bundled, hub
from tunekit.models.backbone import Backbone
from tunekit.models.labels import class_labels, distinct
from tunekit.models.loading import load_backbone
from tunekit.models.positions import resize_positions
from tunekit.models.spec import BackboneSpec

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone("efficientnet_lite0", BackboneSpec())


def tiny_vit(image_size: int = 32) -> keras.Model:
    return hub.keras_hub().models.ViTBackbone(
        image_shape=(image_size, image_size, 3),
        patch_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )


def test_the_bundled_backbone_says_what_it_is(lite0: Backbone) -> None:
    assert (lite0.features, lite0.family, lite0.dim) == ("map", "efficientnet", 1280)
    assert lite0.preprocessing.image_size_px == (224, 224)
    assert lite0.license == "Apache-2.0" and lite0.source == "efficientnet_lite0"


def test_the_bundled_classifier_sees_a_palace_and_a_daisy(lite0: Backbone) -> None:
    pixels = [
        lite0.preprocessing.to_pixels(Image.open(PHOTOS / f)) for f in ("china.jpg", "flower.jpg")
    ]
    images = lite0.preprocessing.normalise(np.stack(pixels))
    head = lite0.pretrained_head
    assert head is not None and head.pooling == "avg" and len(head.labels) == 1000
    logits = np.asarray(lite0.keras(images)).mean((1, 2)) @ head.kernel + head.bias
    assert [head.labels[i].split(",")[0] for i in logits.argmax(1)] == ["palace", "daisy"]


def test_another_size_and_precision_of_the_bundled_backbone() -> None:
    backbone = load_backbone(
        "efficientnet_lite0", BackboneSpec(image_size=64, dtype="mixed_bfloat16")
    )
    assert backbone.keras.output_shape == (None, 2, 2, 1280)
    # KerasHub's EfficientNet does not hand its dtype on to its layers.
    assert {layer.compute_dtype for layer in backbone.keras.layers[1:]} == {"bfloat16"}
    assert {v.dtype for v in backbone.keras.variables} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"


def test_the_bundled_architecture_without_weights_depends_on_the_seed_alone() -> None:
    spec = BackboneSpec(image_size=32, pretrained=False)
    bodies = [load_backbone("efficientnet_lite0", spec, seed=s) for s in (0, 0, 1)]
    kernels = [np.asarray(b.keras.get_layer("top_conv").kernel) for b in bodies]
    assert np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[0], kernels[2])
    assert bodies[0].pretrained_head is None


# Keras' own saving converts variables in the way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_kerashub_folder_of_a_vit_loads_with_its_class_token(tmp_path: Path) -> None:
    tiny_vit().save_to_preset(str(tmp_path))
    backbone = load_backbone(tmp_path, BackboneSpec())
    assert (backbone.features, backbone.prefix_tokens, backbone.family) == ("tokens", 1, "vit")
    assert backbone.keras.output_shape == (None, 17, 8)


def test_resizing_a_vit_interpolates_its_positions_and_keeps_the_rest() -> None:
    body = tiny_vit()
    larger = hub.resized(body, (40, 48))
    assert larger.output_shape == (None, 1 + 5 * 6, 8)
    tables = [m.get_layer("vit_patching_and_embedding").position_embedding for m in (body, larger)]
    before, after = (np.asarray(table.embeddings) for table in tables)
    assert np.array_equal(before[0], after[0]) and after.shape == (31, 8)
    patches = [m.get_layer("vit_patching_and_embedding").patch_embedding for m in (body, larger)]
    assert np.array_equal(*(np.asarray(layer.kernel) for layer in patches))
    back = hub.resized(body, (32, 32))
    images = np.ones((1, 32, 32, 3), np.float32)
    assert np.array_equal(np.asarray(back(images)), np.asarray(body(images)))


def test_resizing_dinov2_interpolates_the_positions_of_its_pretraining() -> None:
    body = hub.keras_hub().models.DINOV2Backbone(
        patch_size=8,
        num_layers=1,
        hidden_dim=8,
        num_heads=2,
        intermediate_dim=16,
        image_shape=(24, 24, 3),
        position_embedding_shape=(40, 40),
    )
    table = np.asarray(body.embeddings.position_embeddings)[0]
    smaller = hub.resized(body, (24, 24))
    expected = resize_positions(table, (3, 3), prefix=1, antialias=False)
    # The equation of torch's kernel, not that of Keras' resize.
    got = np.asarray(smaller.embeddings.interpolated_position_embeddings)[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert not np.allclose(got, np.asarray(body.embeddings.interpolated_position_embeddings)[0])


def test_a_name_that_is_no_hugging_face_handle_is_refused() -> None:
    with pytest.raises(ModelError, match="'hf://a/b/c' cannot be fetched .* hf://owner/name"):
        load_backbone("hf://a/b/c", BackboneSpec())


def test_an_image_that_is_no_whole_number_of_patches_is_refused() -> None:
    with pytest.raises(ModelError, match=r"ViTBackbone takes no images of \(33, 33\)"):
        hub.resized(tiny_vit(), (33, 33))


def test_tensorflow_stays_out_of_the_process_and_can_be_imported_after() -> None:
    code = (
        "import sys\n"
        "from tunekit.models.loading import load_backbone\n"
        "from tunekit.models.spec import BackboneSpec\n"
        "load_backbone('efficientnet_lite0', BackboneSpec(image_size=32))\n"
        "assert 'keras_hub' in sys.modules\n"
        "assert not [m for m in sys.modules if m.split('.')[0].startswith('tensorflow')]\n"
        "import importlib.util, keras\n"
        "assert importlib.util.find_spec('tensorflow') is not None\n"
        "from keras.src.utils.module_utils import tensorflow\n"
        "assert tensorflow._available is None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_unknown_name_gives_the_near_ones() -> None:
    with pytest.raises(ModelError, match="Did you mean 'resnet_50_imagenet'"):
        load_backbone("resnet50_imagenet", BackboneSpec())
    with pytest.raises(ModelError, match="Did you mean 'efficientnet_lite0'"):
        load_backbone("efficientnet_lite", BackboneSpec())


def test_a_preset_that_cannot_be_fetched_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy that refuses: the test needs no network and never reaches one.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ModelError, match="'resnet_18_imagenet' cannot be loaded.*over the network"):
        load_backbone("resnet_18_imagenet", BackboneSpec())


@pytest.mark.parametrize("source", ["./nowhere/vit", Path("nowhere"), "~/nowhere/vit"])
def test_a_folder_that_is_not_there_is_no_preset_name(source: str | Path) -> None:
    with pytest.raises(ModelError, match="there is no folder, .gguf or .keras file at .*nowhere"):
        load_backbone(source, BackboneSpec())


def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelError, match="is no model folder: .* it holds weights.bin"):
        load_backbone(tmp_path, BackboneSpec())


def test_a_kerashub_folder_without_weights_is_refused(tmp_path: Path) -> None:
    for file in ("config.json", "task.json"):
        (tmp_path / file).write_text((bundled.folder("efficientnet_lite0") / file).read_text())
    with pytest.raises(ModelError, match="The folder is no complete KerasHub preset"):
        load_backbone(tmp_path, BackboneSpec())


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json is no valid JSON"):
        load_backbone(tmp_path, BackboneSpec())
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="holds a list, expected a JSON object"):
        load_backbone(tmp_path, BackboneSpec())


def test_labels_come_from_the_folder_then_from_imagenet_then_from_numbers(tmp_path: Path) -> None:
    assert class_labels(tmp_path, 2) == ("0", "1")
    assert class_labels(tmp_path, 1000)[0].startswith("tench")
    (tmp_path / "labels.json").write_text(json.dumps(["a", "b"]))
    assert class_labels(tmp_path, 2) == ("a", "b")
    with pytest.raises(ModelError, match="names 2 labels; the classifier has 3"):
        class_labels(tmp_path, 3)


def test_labels_that_repeat_carry_their_index() -> None:
    assert distinct(["crane", "hen", "crane"]) == ("crane (0)", "hen", "crane (2)")
    assert len(set(class_labels("", 1000))) == 1000
