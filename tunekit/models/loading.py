"""One door to every kind of pretrained backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from tunekit.errors import ModelError
from tunekit.models import applications, bundled, functional, hub, hub_text, huggingface, timm
from tunekit.models.backbone import Backbone
from tunekit.models.first_blocks import with_first_blocks
from tunekit.models.spec import BackboneSpec
from tunekit.models.torch_weights import read_json

_HUGGINGFACE = "hf://"


def load_backbone(
    source: str | Path | keras.Model, spec: BackboneSpec, *, seed: int = 0
) -> Backbone:
    """Returns the backbone that `source` names, with its preprocessing and classifier.

    Args:
        source: a bundled name, a KerasHub preset (name, handle or folder), a Hugging Face or timm
            folder, "hf://owner/name", "keras.applications:Name", a ``.keras`` file, a backbone
            or task of KerasHub, or a functional keras.Model of images; models are copied.
        spec: image size, precision, pretrained or not, blocks kept; its `name` is not read.
        seed: of the weights when ``spec.pretrained`` is False.

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
        backbone = _load(source, spec, seed)
        return backbone if spec.blocks is None else with_first_blocks(backbone, spec.blocks)


def _load(source: str | Path | keras.Model, spec: BackboneSpec, seed: int) -> Backbone:
    if isinstance(source, keras.Model) and hub.is_object(source):
        if hub_text.takes_tokens(source):
            return hub_text.load_object(source, spec, seed=seed)
        return hub.load_object(source, spec, seed=seed)
    if isinstance(source, keras.Model):
        return functional.load_model(source, spec, seed=seed)
    name = str(source)
    if name in bundled.names():
        return hub.load_preset(name, spec, seed=seed)
    if name.startswith(applications.PREFIX):
        name = name.removeprefix(applications.PREFIX)
        return applications.load_application(name, spec, seed=seed)
    path = _snapshot(name) if name.startswith(_HUGGINGFACE) else Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, spec, seed)
    if path.is_file() and path.suffix == ".keras":
        model: Any = keras.models.load_model(path, compile=False)
        return functional.load_model(model, spec, seed=seed)
    if "://" not in name and (isinstance(source, Path) or "/" in name or name.startswith(".")):
        raise ModelError(f"there is no folder and no .keras file at {path}.")
    return hub.load_preset(name, spec, seed=seed)


def _snapshot(name: str) -> Path:
    """The folder of "hf://owner/name", fetched once: KerasHub would drop its preprocessing."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.h5"]
    try:
        return Path(snapshot_download(name.removeprefix(_HUGGINGFACE), allow_patterns=wanted))
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise ModelError(
            f"'{name}' cannot be fetched from Hugging Face ({cause}). Expected "
            f"{_HUGGINGFACE}owner/name; a folder downloaded earlier can be given instead."
        ) from error


def _load_folder(folder: Path, spec: BackboneSpec, seed: int) -> Backbone:
    """Whose folder it is, its config.json says."""
    config = read_json(folder / "config.json")
    if "registered_name" in config:
        return hub.load_preset(str(folder), spec, seed=seed)
    if "model_type" in config:
        return huggingface.load_folder(folder, spec, seed=seed)
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
