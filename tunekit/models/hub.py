"""KerasHub presets, by name or from a folder. The only module that imports keras_hub.

Reads ``keras_hub.src.utils.preset_utils.check_file_exists`` and the layers of KerasHub's decoders
(0.32), and the cache of ``keras.src.utils.module_utils.LazyModule`` (3.15), which no public name
reaches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
from keras.src.utils import module_utils

from tunekit.errors import ModelError, did_you_mean
from tunekit.models import bundled
from tunekit.models.backbone import Backbone, Features, PretrainedHead
from tunekit.models.initialisation import seeded, without_values
from tunekit.models.labels import class_labels
from tunekit.models.positions import resize_positions
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.spec import BackboneSpec
from tunekit.names import canonical_name, structural_names


@contextmanager
def tensorflow_hidden() -> Iterator[None]:
    """In this block TensorFlow looks absent, unless it has been imported before.

    KerasHub imports it when it can, for tf.data preprocessing that nothing here uses; it costs
    seconds and grabs GPU memory. KerasHub's own preprocessing layers therefore stay without
    tf.data in this process.
    """
    hidden = [n for n in ("tensorflow", "tensorflow_text") if n not in sys.modules]
    lazy = (module_utils.tensorflow, module_utils.gfile)
    known = [module._available for module in lazy]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # import then raises ImportError
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
        for module, available in zip(lazy, known, strict=True):
            module._available = available


def keras_hub() -> ModuleType:
    """Returns the module keras_hub, imported without TensorFlow."""
    with tensorflow_hidden():
        import keras_hub as module
    return module


_DECODERS = {
    "llama": (
        "llama.llama_decoder.LlamaTransformerDecoder",
        "llama.llama_layernorm.LlamaLayerNorm",
    ),
    "mistral": (
        "mistral.mistral_transformer_decoder.MistralTransformerDecoder",
        "mistral.mistral_layer_norm.MistralLayerNormalization",
    ),
    "qwen2": (
        "qwen.qwen_decoder.QwenTransformerDecoder",
        "qwen.qwen_layernorm.QwenLayerNorm",
    ),
    "gemma": (
        "gemma.gemma_decoder_block.GemmaDecoderBlock",
        "gemma.rms_normalization.RMSNormalization",
    ),
}


def decoder_layers(family: str) -> tuple[Any, Any]:
    """Returns the classes of a decoder's blocks and of its norms: "llama", "mistral", "qwen2"..."""
    keras_hub()

    def found(path: str) -> Any:
        module, _, name = path.rpartition(".")
        return getattr(import_module(f"keras_hub.src.models.{module}"), name)

    block, norm = _DECODERS[family]
    return found(block), found(norm)


def preset_names() -> list[str]:
    """Returns the names of the backbones of images that KerasHub knows how to fetch."""
    models = keras_hub().models
    return sorted({*models.ImageClassifier.presets, *models.DINOV2Backbone.presets})


def text_preset_names() -> list[str]:
    """Returns the names of the backbones of texts that KerasHub knows how to fetch."""
    models = keras_hub().models
    tasks = (models.CausalLM, models.MaskedLM, models.TextClassifier, models.TextEmbedder)
    return sorted({name for task in tasks for name in task.presets})


def load_preset(name: str, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns the backbone of a KerasHub preset, and its classifier if the preset has one.

    Args:
        name: bundled name, preset name, "kaggle://..." handle, or preset folder.
        spec: how to build it; its `name` is not read.
        seed: of the fresh weights when ``spec.pretrained`` is False.

    Raises:
        ModelError: no such preset, it cannot be fetched, or it is no image backbone.
    """
    is_bundled = name in bundled.names()
    place = str(bundled.folder(name)) if is_bundled else name
    preset = _read(place, spec, seed)
    body: Any = getattr(preset, "backbone", preset)
    native = _input_size(body)
    preprocessing = _preprocessing(preset, place, native)
    size = image_size(spec, preprocessing.image_size_px)
    # KerasHub interpolates DINOv2's positions with another kernel than they were trained for.
    if native not in (None, size) or hasattr(body, "position_embedding_shape"):
        body = resized(body, size)
    return as_backbone(
        body,
        preprocessing.with_size(size),
        source=name,
        head=_head(preset, place) if spec.pretrained else None,
        license=bundled.license(name) if is_bundled else None,
    )


def is_object(model: keras.Model) -> bool:
    """Returns whether `model` is a backbone or classifier of KerasHub."""
    return type(model).__module__.startswith("keras_hub.")


def load_object(model: keras.Model, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns a copy of a KerasHub backbone, or of a classifier's; `model` stays as it was.

    It is copied whole, by its own configuration: that of some of its layers is not complete
    (KerasHub 0.32, ViTPatchingAndEmbedding). Without a preprocessor it takes pixels 0..255.

    Raises:
        ModelError: it gives no image features, or cannot take the image size asked for.
    """
    body: Any = getattr(model, "backbone", model)
    native = _input_size(body)
    converter = getattr(getattr(model, "preprocessor", None), "image_converter", None)
    if converter is None:
        preprocessing = ImagePreprocessing(
            native or (224, 224), resize="squash", interpolation="bilinear"
        )
    else:
        preprocessing = read_converter(converter, native)
    with without_values() if spec.pretrained else seeded(seed):
        # DINOv2 names its layers after the model, whose automatic name counts up.
        own = {"dtype": spec.dtype, "name": canonical_name(body)}
        copy = type(body).from_config({**body.get_config(), **own})
    if spec.pretrained:
        for ours, theirs in zip(copy.variables, body.variables, strict=True):
            ours.assign(theirs.value)
    size = image_size(spec, preprocessing.image_size_px)
    copy = resized(copy, size) if native not in (None, size) else copy
    head = _head(model, None) if spec.pretrained else None
    return as_backbone(copy, preprocessing.with_size(size), source=model.name, head=head)


def image_size(spec: BackboneSpec, default: tuple[int, int]) -> tuple[int, int]:
    """Returns the (height, width) that `spec` asks for, `default` where it asks for none."""
    size = spec.image_size
    return default if size is None else (size, size) if isinstance(size, int) else size


def as_backbone(
    body: keras.Model,
    preprocessing: ImagePreprocessing,
    *,
    source: str,
    head: PretrainedHead | None,
    family: str | None = None,
    license: str | None = None,
) -> Backbone:
    """Returns a network of images as tunekit's noun; `family` None is read from its class."""
    shape = body.output_shape
    kinds: dict[int, Features] = {4: "map", 3: "tokens", 2: "vector"}
    if not isinstance(shape, tuple) or len(shape) not in kinds:
        raise ModelError(f"'{source}' is a {type(body).__name__}, which gives no image features.")
    # DINOv2 takes {"images": x}; the same graph with a plain input keeps its layers and names.
    plain = keras.Model(body.inputs[0], body.output) if isinstance(body.input, dict) else body
    return Backbone(
        keras=plain,
        preprocessing=preprocessing,
        features=kinds[len(shape)],
        family=family or type(body).__name__.removesuffix("Backbone").lower(),
        source=source,
        prefix_tokens=_prefix_tokens(body),
        pretrained_head=head,
        license=license,
    )


def resized(body: Any, size: tuple[int, int]) -> keras.Model:
    """Returns `body` rebuilt for images of `size`, with the same weights.

    Learned position embeddings are interpolated as the library that trained them does.

    Raises:
        ModelError: the family ties its weights to the image size in another way.
    """
    config = body.get_config()
    key = "image_shape" if "image_shape" in config else "input_shape"
    config[key] = (*size, 3)
    if "position_embedding_shape" in config:
        config["position_embedding_shape"] = (*size, 3)
        config.pop("name")  # DINOv2 would put it before the names of its layers
    try:
        with without_values(), tensorflow_hidden():
            rebuilt = type(body).from_config(config)
    except ValueError as error:
        raise ModelError(f"{type(body).__name__} takes no images of {size}: {error}") from error
    old, new = structural_names(body).values(), structural_names(rebuilt).items()
    patch = config.get("patch_size")
    for (name, variable), source in zip(new, old, strict=True):
        is_interpolated = name.endswith("interpolated_position_embeddings")
        value = np.asarray(body.embeddings.position_embeddings if is_interpolated else source)
        if value.shape != variable.shape:
            if patch is None or "position_embedding" not in name:
                raise ModelError(
                    f"{type(body).__name__} cannot take another image size than "
                    f"{_input_size(body)}: '{name}' depends on it. Leave image_size out."
                )
            grid = patch_grid(size, patch)
            antialias = bool(config.get("antialias_in_interpolation"))
            value = resize_positions(
                value.reshape(-1, value.shape[-1]),
                grid,
                prefix=variable.shape[-2] - grid[0] * grid[1],
                antialias=antialias,
            ).reshape(variable.shape)
        variable.assign(value)
    return rebuilt


def patch_grid(size: tuple[int, int], patch: int | tuple[int, int]) -> tuple[int, int]:
    """Returns the rows and columns of patches in an image of `size` pixels."""
    patch_h, patch_w = (patch, patch) if isinstance(patch, int) else patch
    return size[0] // patch_h, size[1] // patch_w


def _read(name: str, spec: BackboneSpec, seed: int) -> keras.Model:
    """The preset as KerasHub reads it: a classifier if it holds one, else a backbone."""
    models = keras_hub().models
    known = [*preset_names(), *text_preset_names()]
    is_folder = Path(name).is_dir()
    if not is_folder and "://" not in name and name not in known:
        raise ModelError(
            f"'{name}' is no bundled backbone ({', '.join(bundled.names())}), no KerasHub preset "
            f"and no folder.{did_you_mean(name, [*bundled.names(), *known])}"
        )
    from keras_hub.src.utils.preset_utils import check_file_exists

    def read() -> Any:
        has_task = check_file_exists(name, "task.json")
        reader = models.ImageClassifier if has_task else models.Backbone
        return reader.from_preset(name, load_weights=spec.pretrained, dtype=spec.dtype)

    return preset_by(read, name, spec, seed)


def preset_by(
    read: Callable[[], keras.Model], name: str, spec: BackboneSpec, seed: int
) -> keras.Model:
    """Returns the preset that `read` reads, every weight of its backbone in its place.

    Args:
        read: builds it and loads it.
        name: of the preset, or its folder.
        spec: how it is built.
        seed: of fresh weights.

    Raises:
        ModelError: it cannot be fetched, or lacks files or weights.
    """
    fill = without_values() if spec.pretrained else seeded(seed)
    try:
        with tensorflow_hidden(), fill as placeholders:
            preset: Any = read()
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        advice = (
            "The folder is no complete KerasHub preset."
            if Path(name).is_dir()
            else "It is fetched over the network; give a folder that holds the preset, or the "
            f"bundled '{bundled.names()[0]}', where there is none."
        )
        raise ModelError(f"preset '{name}' cannot be loaded ({cause}). {advice}") from error
    missing = placeholders.left_in(getattr(preset, "backbone", preset)) if placeholders else []
    if missing:
        raise ModelError(f"preset '{name}' holds no weights for {missing[:5]}.")
    return preset


def _preprocessing(
    preset: keras.Model, name: str, native: tuple[int, int] | None
) -> ImagePreprocessing:
    converter = getattr(getattr(preset, "preprocessor", None), "image_converter", None)
    if converter is None:
        try:
            with tensorflow_hidden():
                converter = keras_hub().layers.ImageConverter.from_preset(name)
        except (ValueError, FileNotFoundError):
            return ImagePreprocessing(native or (224, 224), scale=_three(1 / 255, 1.0))
    return read_converter(converter, native)


def read_converter(converter: Any, native: tuple[int, int] | None) -> ImagePreprocessing:
    """Returns what a KerasHub image converter does, with Pillow's resize in place of Keras'.

    Args:
        converter: a keras_hub.layers.ImageConverter.
        native: size that the backbone was built for, if it was built for one.
    """
    size = converter.image_size
    pad, crop = converter.pad_to_aspect_ratio, converter.crop_to_aspect_ratio
    return ImagePreprocessing(
        image_size_px=native or (tuple(size) if size else (224, 224)),
        resize="pad" if pad else "crop" if crop else "squash",
        interpolation=converter.interpolation,
        scale=_three(converter.scale, 1.0),
        offset=_three(converter.offset, 0.0),
    )


def _head(task: keras.Model, name: str | None) -> PretrainedHead | None:
    dense = getattr(task, "output_dense", None)
    # A ViT "pre_logits" layer between pooling and logits makes the head more than one matrix.
    if dense is None or getattr(task, "intermediate_dim", None) is not None:
        return None
    kernel, bias = np.asarray(dense.kernel, np.float32), np.asarray(dense.bias, np.float32)
    pooling = {"avg": "avg", "max": "max", "token": "token"}.get(task.pooling)
    if pooling is None:
        return None
    labels = class_labels(name, len(bias))
    return PretrainedHead(labels, pooling, kernel, bias)  # type: ignore[arg-type]


def _input_size(body: keras.Model) -> tuple[int, int] | None:
    height, width = body.inputs[0].shape[1:3]
    return None if height is None or width is None else (height, width)


def _prefix_tokens(body: keras.Model) -> int:
    size, patch = _input_size(body), getattr(body, "patch_size", None)
    if len(body.output_shape) != 3 or size is None or patch is None:
        return 0
    rows, columns = patch_grid(size, patch)
    return body.output_shape[1] - rows * columns


def _three(value: Any, default: float) -> tuple[float, float, float]:
    if isinstance(value, Mapping):
        raise ModelError(f"expected a number or three, got {value!r} in the image converter.")
    red, green, blue = np.broadcast_to(default if value is None else value, (3,)).tolist()
    return red, green, blue
