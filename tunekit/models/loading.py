"""One door to every kind of pretrained backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from tunekit.compilation_cache import keep_programs
from tunekit.errors import ModelError
from tunekit.models import (
    applications,
    bundled,
    catalogue,
    functional,
    gguf,
    hub,
    hub_text,
    huggingface,
    timm,
)
from tunekit.models.backbone import Backbone, PretrainedHead
from tunekit.models.cpu_memory import keep_freed_memory, memory_given_back
from tunekit.models.first_blocks import with_first_blocks
from tunekit.models.labels import distinct
from tunekit.models.model import Model
from tunekit.models.spec import BackboneSpec, Dtype, HeadSpec, Quantization
from tunekit.models.torch_weights import read_json

_HUGGINGFACE = "hf://"


@memory_given_back()
def load_model(
    source: str | Path | keras.Model,
    *,
    image_size: int | tuple[int, int] | None = None,
    labels: Sequence[str] | None = None,
    head: HeadSpec | str | None = None,
    dtype: Dtype = "float32",
    pretrained: bool = True,
    blocks: int | None = None,
    quantize: Quantization | None = None,
    seed: int = 0,
) -> Model:
    """Returns the model that `source` names, ready to predict or to be fine-tuned.

    With `labels` it has a fresh head. Without, it has the classifier that came with the weights;
    or no head, where there came none or `head` asks for another: `finetune` then makes it.

    Args:
        source: bundled name, preset, folder, "keras.applications:Name", or functional keras.Model;
            with `pretrained` False also a name of the catalogue, such as "llama3_8b".
        image_size: side, or (height, width), in pixels; `None` is that of the pretraining.
        labels: names of the classes.
        head: a HeadSpec, or a kind: "linear", "mlp", "cosine".
        dtype: precision of the backbone; the head is always float32.
        pretrained: False gives the same architecture with fresh weights.
        blocks: how many blocks to keep, from the first; `None` keeps all.
        quantize: how the backbone's kernels are packed: "int8", "int4" or "nf4".
        seed: of everything fresh.

    Raises:
        ModelError: the source cannot be loaded, or the head does not fit it.

    Example:
        >>> len(load_model("efficientnet_lite0").labels)
        1000
    """
    keep_freed_memory()
    keep_programs()
    spec = BackboneSpec(str(source), image_size, dtype, pretrained, blocks)
    backbone = load_backbone(source, spec, seed=seed)
    if labels is not None or head is not None or backbone.pretrained_head is None:
        model = Model(backbone, labels or (), head, seed=seed)
    else:
        model = with_own_head(backbone, backbone.pretrained_head)
    if quantize is not None:
        model.quantize(quantize)
    return model


def with_own_head(backbone: Backbone, own: PretrainedHead) -> Model:
    """Returns `backbone` with the classifier that came with its weights."""
    unpooled = own.pooling == "none" and not backbone.features.endswith("_states")
    spec = HeadSpec(pooling="auto" if unpooled else own.pooling)
    values = {"logits/kernel": own.kernel}
    if own.bias is not None:
        values["logits/bias"] = own.bias
    if layer := own.hidden:
        values |= {"hidden_0/kernel": layer.kernel, "hidden_0/bias": layer.bias}
        spec = replace(spec, kind="mlp", hidden=layer.bias.shape, activation=layer.activation)
    model = Model(backbone, distinct(own.labels), replace(spec, bias=own.bias is not None))
    variables = model.variables()
    for name, value in values.items():
        variables[f"heads/label/{name}"].assign(value)
    return model


def load_backbone(
    source: str | Path | keras.Model,
    spec: BackboneSpec,
    *,
    seed: int = 0,
    depth: int | None = None,
) -> Backbone:
    """Returns the backbone that `source` names, with its preprocessing and classifier.

    Args:
        source: a bundled name, a KerasHub preset (name, handle or folder), a Hugging Face or timm
            folder, "hf://owner/name", "keras.applications:Name", a ``.keras`` file, a backbone
            or task of KerasHub, or a functional keras.Model of images; models are copied. Without
            pretrained weights also a name of the catalogue.
        spec: image size, precision, pretrained or not, blocks kept; its `name` is not read.
        seed: of the weights when ``spec.pretrained`` is False.
        depth: how many blocks to build, without pretrained weights, of what `has_depth`.

    Raises:
        ModelError: nothing has that name, what it names cannot be read as a backbone of images or
            tokens, or it cannot be cut after so many blocks.

    Example:
        >>> backbone = load_backbone("efficientnet_lite0", BackboneSpec(image_size=160))
        >>> backbone.keras.output_shape
        (None, 5, 5, 1280)
    """
    # Keras' own get_config imports TensorFlow where it is installed, so it is hidden throughout.
    with _precision(spec.dtype), hub.tensorflow_hidden():
        backbone = _load(source, spec, seed, depth)
        return backbone if spec.blocks is None else with_first_blocks(backbone, spec.blocks)


def has_depth(source: str | Path) -> bool:
    """Returns whether `source` is a config that says how many blocks there are, all of one kind.

    A name of the catalogue may be, a Hugging Face folder or a GGUF file.
    """
    path = Path(source).expanduser()
    if str(source) in catalogue.names():
        return catalogue.depth_of(str(source)) is not None
    if path.suffix == ".gguf":
        return path.is_file()
    config = read_json(path / "config.json")
    return "model_type" in config and huggingface.depth_key(config) is not None


def _load(
    source: str | Path | keras.Model, spec: BackboneSpec, seed: int, depth: int | None
) -> Backbone:
    if isinstance(source, keras.Model) and hub.is_object(source):
        if hub_text.takes_tokens(source):
            return hub_text.load_object(source, spec, seed=seed)
        return hub.load_object(source, spec, seed=seed)
    if isinstance(source, keras.Model):
        return functional.load_model(source, spec, seed=seed)
    name = str(source)
    if name in bundled.names():
        return hub.load_preset(name, spec, seed=seed)
    if name in catalogue.names():
        return catalogue.load(name, spec, seed=seed, depth=depth)
    if name.startswith(applications.PREFIX):
        name = name.removeprefix(applications.PREFIX)
        return applications.load_application(name, spec, seed=seed)
    is_handle = name.startswith(_HUGGINGFACE)
    path = _snapshot(name, weights=spec.pretrained) if is_handle else Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, spec, seed, depth)
    if path.is_file() and path.suffix == ".gguf":
        with gguf.as_folder(path, weights=spec.pretrained) as folder:
            return replace(_load_folder(folder, spec, seed, depth), source=str(path))
    if path.is_file() and path.suffix == ".keras":
        model: Any = keras.models.load_model(path, compile=False)
        return functional.load_model(model, spec, seed=seed)
    if "://" not in name and (isinstance(source, Path) or "/" in name or name.startswith(".")):
        raise ModelError(f"there is no folder, .gguf or .keras file at {path}.")
    return _load_preset(name, spec, seed)


def _load_preset(name: str, spec: BackboneSpec, seed: int) -> Backbone:
    """The preset of that name, or in that folder, of images or of tokens."""
    load = hub_text.load_preset if hub_text.is_preset(name) else hub.load_preset
    return load(name, spec, seed=seed)


def _snapshot(name: str, *, weights: bool) -> Path:
    """The folder of "hf://owner/name", fetched once: KerasHub would drop its preprocessing."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.jinja", *(["*.safetensors", "*.h5"] if weights else [])]
    try:
        return Path(snapshot_download(name.removeprefix(_HUGGINGFACE), allow_patterns=wanted))
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise ModelError(
            f"'{name}' cannot be fetched from Hugging Face ({cause}). Expected "
            f"{_HUGGINGFACE}owner/name; a folder downloaded earlier can be given instead."
        ) from error


def _load_folder(folder: Path, spec: BackboneSpec, seed: int, depth: int | None = None) -> Backbone:
    """Whose folder it is, its config.json says."""
    config = read_json(folder / "config.json")
    if "registered_name" in config:
        return _load_preset(str(folder), spec, seed)
    if "model_type" in config:
        return huggingface.load_folder(folder, spec, seed=seed, depth=depth)
    if "architecture" in config:
        return timm.load_folder(folder, spec, seed=seed)
    found = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
    raise ModelError(
        f"{folder} is no model folder: expected a config.json of KerasHub ('registered_name'), "
        f"Hugging Face ('model_type') or timm ('architecture'); it holds {found}."
    )


@contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """Layers built in this block have the policy `dtype`.

    Some KerasHub backbones (EfficientNet) do not hand their own dtype on to their layers.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
