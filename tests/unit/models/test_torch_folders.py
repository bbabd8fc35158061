"""Hugging Face and timm folders: what their configs mean, and folders that must not load."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.unit.models.tiny_folders import (
    PROCESSOR,
    RESNET,
    TIMM_RESNET,
    VIT,
    resnet_tensors,
    vit_tensors,
    write,
)
from tunekit.errors import ModelError
from tunekit.models.huggingface import read_preprocessing
from tunekit.models.loading import load_backbone
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.spec import BackboneSpec
from tunekit.models.timm import read_preprocessing as timm_preprocessing
from tunekit.models.vit import ViTShape, build

SPEC = BackboneSpec()


def processed(folder: Path, **config: Any) -> ImagePreprocessing:
    write(folder, {}, {}, config)
    return read_preprocessing(folder)


def test_a_resnet_folder_brings_body_head_and_distinct_labels(tmp_path: Path) -> None:
    backbone = load_backbone(write(tmp_path, RESNET, resnet_tensors()), SPEC)
    assert (backbone.features, backbone.family, backbone.dim) == ("map", "resnet", 16)
    head = backbone.pretrained_head
    assert head is not None and head.labels == ("cat", "dog (1)", "dog (2)")
    assert backbone.keras.get_layer("conv1_bn").epsilon == 1e-5


def test_a_body_saved_without_its_classifier_has_the_same_features(tmp_path: Path) -> None:
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    tensors = resnet_tensors()
    body = {k.removeprefix("resnet."): v for k, v in tensors.items() if k.startswith("resnet.")}
    first = load_backbone(write(tmp_path / "with", RESNET, tensors), SPEC)
    second = load_backbone(write(tmp_path / "without", RESNET, body), SPEC)
    images = np.ones((1, 32, 32, 3), np.float32)
    assert np.array_equal(np.asarray(first.keras(images)), np.asarray(second.keras(images)))
    assert second.pretrained_head is None


def test_the_architecture_alone_needs_no_weights(tmp_path: Path) -> None:
    write(tmp_path, RESNET, {})
    (tmp_path / "model.safetensors").unlink()
    spec = BackboneSpec(pretrained=False, image_size=(32, 48))
    assert load_backbone(tmp_path, spec).keras.output_shape == (None, 8, 12, 16)
    with pytest.raises(ModelError, match="lacks model.safetensors .* convert .bin or .pth"):
        load_backbone(tmp_path, SPEC)


def test_a_vit_keeps_the_epsilon_of_its_config_and_leaves_out_the_pooler(tmp_path: Path) -> None:
    backbone = load_backbone(write(tmp_path, VIT, vit_tensors()), SPEC)
    assert (backbone.features, backbone.prefix_tokens) == ("tokens", 1)
    assert backbone.keras.get_layer("vit_encoder").layer_norm.epsilon == 1e-12
    assert backbone.preprocessing.scale == (2 / 255,) * 3  # KerasHub gives a ViT none


def test_bfloat16_files_load_as_float32(tmp_path: Path) -> None:
    import ml_dtypes

    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in resnet_tensors().items()}
    backbone = load_backbone(write(tmp_path, RESNET, tensors), SPEC)
    assert {v.dtype for v in backbone.keras.variables} == {"float32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra.weight": np.zeros(1)}, r"1 tensors have no place \(extra.weight\)"),
        ({"classifier.1.weight": np.zeros((3, 16)), "resnet.x": np.zeros(1)}, "resnet.x"),
    ],
)
def test_a_tensor_without_a_place_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_backbone(write(tmp_path, RESNET, resnet_tensors() | change), SPEC)


def test_a_lacking_tensor_is_named_with_the_near_ones(tmp_path: Path) -> None:
    tensors = resnet_tensors()
    tensors["resnet.embedder.embedder.convolutio.weight"] = tensors.pop(
        "resnet.embedder.embedder.convolution.weight"
    )
    with pytest.raises(ModelError, match="no tensor 'resnet.embedder.*Did you mean .*convolutio.w"):
        load_backbone(write(tmp_path, RESNET, tensors), SPEC)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    config = RESNET | {"embedding_size": 4}
    with pytest.raises(ModelError, match=r"wants \(7, 7, 3, 4\)"):
        load_backbone(write(tmp_path, config, resnet_tensors()), SPEC)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hidden_act 'gelu_fast' is not supported"):
        load_backbone(write(tmp_path, VIT | {"hidden_act": "gelu_fast"}, vit_tensors()), SPEC)


def test_another_family_is_refused_with_those_that_are_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds a 'vits'; .*Did you mean 'vit'"):
        load_backbone(write(tmp_path, {"model_type": "vits"}, {}), SPEC)


def test_a_folder_without_its_image_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no preprocessor_config.json, which says the size"):
        load_backbone(write(tmp_path, RESNET, resnet_tensors(), None), SPEC)


def test_a_vit_processor_squashes(tmp_path: Path) -> None:
    got = processed(tmp_path, **PROCESSOR)
    assert (got.resize, got.interpolation, got.crop_fraction) == ("squash", "bilinear", 1.0)
    old = processed(tmp_path, **(PROCESSOR | {"size": 32}))  # before transformers 4.23
    assert old == got


@pytest.mark.parametrize(
    ("edge", "resize", "fraction"), [(224, "crop", 0.875), (384, "squash", 1.0)]
)
def test_a_convnext_processor_crops_below_384(
    tmp_path: Path, edge: int, resize: str, fraction: float
) -> None:
    size = {"shortest_edge": edge}
    got = processed(tmp_path, image_processor_type="ConvNextImageProcessor", size=size)
    assert (got.resize, got.crop_fraction) == (resize, fraction)
    assert (got.image_size_px, got.interpolation) == ((edge, edge), "bicubic")


def test_a_bit_processor_crops_the_centre_of_a_larger_image(tmp_path: Path) -> None:
    got = processed(
        tmp_path,
        image_processor_type="BitImageProcessor",
        size={"shortest_edge": 256},
        do_center_crop=True,
        crop_size={"height": 224, "width": 224},
    )
    assert (got.image_size_px, got.crop_fraction) == ((224, 224), 0.875)


def test_a_processor_without_rescaling_or_normalising_keeps_the_pixels(tmp_path: Path) -> None:
    config = PROCESSOR | {"do_rescale": False, "do_normalize": False}
    got = processed(tmp_path, **config)
    assert got.scale == (1, 1, 1) and got.offset == (0, 0, 0)


def test_processors_that_do_more_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="rescale_offset.* are not supported"):
        processed(tmp_path, **(PROCESSOR | {"rescale_offset": True}))
    with pytest.raises(ModelError, match="expected a size of height and width, or a shortest_edge"):
        processed(tmp_path, image_processor_type="BitImageProcessor", size={"shortest_edge": 9})


def timm_resnet_tensors() -> dict[str, np.ndarray]:
    """One bottleneck in each of timm's four stages, with the weights of the folder above."""
    found = {}
    layers = {"layer.0": ("conv1", "bn1"), "layer.1": ("conv2", "bn2"), "layer.2": ("conv3", "bn3")}
    layers["shortcut"] = ("downsample.0", "downsample.1")
    for name, value in resnet_tensors().items():
        part = name.rpartition(".")[2]
        is_norm = "normalization" in name
        if "embedder" in name:
            found[f"{('conv1', 'bn1')[is_norm]}.{part}"] = value
        elif name.startswith("classifier"):
            found[f"fc.{part}"] = value
        else:
            (layer,) = (n for k, n in layers.items() if f"0.{k}." in name)
            found[f"layer1.0.{layer[is_norm]}.{part}"] = value
    for stage in (2, 3, 4):
        for name in [n for n in found if n.startswith("layer1.")]:
            value = found[name]
            wide = name.endswith(("conv1.weight", "downsample.0.weight")) and value.ndim == 4
            value = np.repeat(value, 2, axis=1) if wide else value
            found[name.replace("layer1", f"layer{stage}")] = value
    return found


def test_a_timm_resnet_is_read_from_its_tensors(tmp_path: Path) -> None:
    folder = write(tmp_path, TIMM_RESNET, timm_resnet_tensors(), None)
    backbone = load_backbone(folder, SPEC)
    assert backbone.keras.output_shape == (None, 1, 1, 16)
    assert backbone.pretrained_head is not None
    assert backbone.pretrained_head.labels == ("0", "1", "2")


def test_a_timm_config_names_labels_and_refuses_another_pooling(tmp_path: Path) -> None:
    named = TIMM_RESNET | {"label_names": ["a", "b", "c"], "global_pool": "avg"}
    backbone = load_backbone(write(tmp_path, named, timm_resnet_tensors(), None), SPEC)
    assert backbone.pretrained_head is not None
    assert backbone.pretrained_head.labels == ("a", "b", "c")
    with pytest.raises(ModelError, match="global_pool 'max' is not supported"):
        config = TIMM_RESNET | {"global_pool": "max"}
        load_backbone(write(tmp_path, config, timm_resnet_tensors(), None), SPEC)


@pytest.mark.parametrize("name", ["resnetaa50", "resnet50d", "vit_base_patch16_clip_quickgelu_224"])
def test_timm_variants_that_compute_something_else_are_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, TIMM_RESNET | {"architecture": name}, timm_resnet_tensors(), None)
    with pytest.raises(ModelError, match=f"'{name}' is not supported"):
        load_backbone(folder, SPEC)


def test_timm_preprocessing_has_timms_defaults() -> None:
    got = timm_preprocessing({"architecture": "x"})
    assert (got.resize, got.crop_fraction, got.interpolation) == ("crop", 0.875, "bicubic")
    assert (got.image_size_px, got.crop_rounding) == ((224, 224), "even")
    with pytest.raises(ModelError, match="crop_mode 'zoom'; expected one of center"):
        timm_preprocessing({"pretrained_cfg": {"crop_mode": "zoom"}})


def tiny_dinov2(**change: Any) -> ViTShape:
    known = {"patch": 8, "layers": 1, "heads": 2, "dim": 8, "mlp_dim": 16, "epsilon": 1e-6}
    return ViTShape(**(known | {"layer_scale": True} | change))


def test_dinov2_is_refused_where_kerashub_cannot_build_it() -> None:
    with pytest.raises(ModelError, match=r"layer norm epsilon 1e-05 .* image_size \(16, 24\)"):
        build(tiny_dinov2(epsilon=1e-5), (16, 24))


def test_a_size_of_broken_patches_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no whole number of 8-pixel patches.*\(24, 24\)"):
        build(tiny_dinov2(), (22, 22))


@pytest.mark.parametrize("registers", [0, 2])
def test_every_family_is_rebuilt_from_its_config(registers: int) -> None:
    """A saved result rebuilds its network this way, so names and shapes must come out again."""
    from tunekit.models.hub import as_backbone, tensorflow_hidden
    from tunekit.names import structural_names

    body = build(tiny_dinov2(registers=registers), (16, 16))
    model = as_backbone(body, ImagePreprocessing((16, 16)), source="", head=None).keras
    with tensorflow_hidden():
        again = keras.Model.from_config(model.get_config())
    shapes = {name: tuple(v.shape) for name, v in structural_names(model).items()}
    assert {name: tuple(v.shape) for name, v in structural_names(again).items()} == shapes
    for name, variable in structural_names(again).items():
        variable.assign(structural_names(model)[name])
    images = np.ones((1, 16, 16, 3), np.float32)
    assert np.array_equal(np.asarray(again(images)), np.asarray(model(images)))
