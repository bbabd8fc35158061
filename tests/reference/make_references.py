"""Writes shapes.json, expected.json and expected.npz: what timm and transformers answer.

Run from the repository, in an environment of its own:

    pip install torch timm transformers pillow safetensors numpy
    python -m tests.reference.make_references --images FOLDER

FOLDER holds china.jpg and flower.jpg as scikit-learn ships them (sklearn/datasets/images, CC BY).
timm imports torchvision, which has no CPU-only wheel on PyPI: where it is absent, a stand-in lets
timm's models import, and timm's evaluation transform is computed by its definition with Pillow,
which is what torchvision calls for PIL images.
"""

from __future__ import annotations

import argparse
import enum
import hashlib
import importlib.machinery
import json
import math
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.reference.folders import HERE, MAKERS, folder

IMAGES = ("china.jpg", "flower.jpg")
# (folder, image size; None: the size of the pretraining)
CASES = [(name, None) for name in MAKERS if name != "timm_dinov2_reg4"] + [
    ("timm_dinov2_reg4", 224),
    ("timm_vit_tiny", 160),
    ("hf_vit_base", 160),
    ("timm_resnet18", 160),
]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def stand_in_for_torchvision() -> None:
    """Makes `import timm` work without torchvision; nothing of it is ever called."""

    class Anything(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            if name == "InterpolationMode":
                return _Interpolation
            return type(name, (torch.nn.Module,), {})

    for name in ("torchvision", *(f"torchvision.{n}" for n in _TORCHVISION)):
        module = Anything(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


class _Interpolation(enum.Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


_TORCHVISION = (
    "ops",
    "ops.misc",
    "transforms",
    "transforms.functional",
    "models",
    "models.feature_extraction",
    "datasets",
    "datasets.folder",
    "io",
)


def timm_pixels(image: Image.Image, cfg: dict[str, Any], size: int) -> np.ndarray:
    """timm.data.create_transform(is_training=False) on PIL, up to the tensor."""
    scale = math.floor(size / cfg["crop_pct"])
    height, width = image.height, image.width
    if cfg.get("crop_mode") == "squash":
        shape = (scale, scale)
    else:  # torchvision.transforms.Resize(int): the long side is truncated
        shape = (
            (scale, int(scale * height / width))
            if width <= height
            else (int(scale * width / height), scale)
        )
    image = image.resize(shape, _FILTERS[cfg["interpolation"]])
    # torchvision.transforms.CenterCrop
    top = int(round((image.height - size) / 2.0))
    left = int(round((image.width - size) / 2.0))
    return np.asarray(image.crop((left, top, left + size, top + size)))


def timm_case(path: Path, image: Image.Image, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, logits) of timm on one image."""
    import timm
    from safetensors.torch import load_file

    config = json.loads((path / "config.json").read_text())
    cfg = config["pretrained_cfg"]
    side = size or cfg["input_size"][-1]
    architecture = config["architecture"]
    options = {"img_size": side} if architecture.startswith("vit") else {}
    model = timm.create_model(architecture, num_classes=config["num_classes"], **options).eval()
    state = load_file(path / "model.safetensors")
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    if isinstance(model, VisionTransformer):
        state = checkpoint_filter_fn(state, model)  # resizes the position embeddings
    model.load_state_dict(state)
    pixels = timm_pixels(image, cfg, side)
    x = torch.from_numpy(pixels.copy()).float() / 255
    x = (x - torch.tensor(cfg["mean"])) / torch.tensor(cfg["std"])
    x = x.permute(2, 0, 1)[None]
    with torch.inference_mode():
        # A body without classifier answers with its class token.
        return pixels, model(x)[0].numpy()


def hf_case(path: Path, image: Image.Image, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, logits) of transformers on one image, its processor on the Pillow path."""
    import transformers

    config = json.loads((path / "config.json").read_text())
    options = json.loads((path / "preprocessor_config.json").read_text())
    kind = getattr(transformers, options.pop("image_processor_type") + "Pil")
    if size:
        assert kind.__name__.startswith("ViT")
        options["size"] = {"height": size, "width": size}
    processor = kind(**options)
    model = getattr(transformers, config["architectures"][0]).from_pretrained(path).eval()
    x = torch.from_numpy(np.stack(processor(image)["pixel_values"]))
    raw = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
    extra = {"interpolate_pos_encoding": True} if size else {}
    with torch.inference_mode():
        logits = model(x.float(), **extra).logits[0].numpy()
    return np.moveaxis(np.asarray(raw), 0, -1), logits


def write_shapes() -> None:
    """shapes.json: the names and shapes of the tensors as the libraries write them."""
    import timm
    import transformers
    from safetensors import safe_open

    names = {
        "timm_resnet18": ("resnet18", {}),
        "timm_resnet50": ("resnet50", {}),
        "timm_vit_tiny": ("vit_tiny_patch16_224", {}),
        "timm_dinov2_reg4": ("vit_small_patch14_reg4_dinov2", {"num_classes": 0}),
        "timm_efficientnet_b0": ("efficientnet_b0", {}),
    }
    shapes = {
        key: {n: list(t.shape) for n, t in timm.create_model(a, **kw).state_dict().items()}
        for key, (a, kw) in names.items()
    }
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=10))
    with tempfile.TemporaryDirectory() as scratch:
        vit.save_pretrained(scratch)
        with safe_open(f"{scratch}/model.safetensors", "np") as file:
            shapes["hf_vit_base"] = {k: list(file.get_slice(k).get_shape()) for k in file.keys()}
    text = ",\n".join(
        f'"{name}": {json.dumps(dict(sorted(tensors.items())), separators=(",", ":"))}'
        for name, tensors in shapes.items()
    )
    (HERE / "shapes.json").write_text("{\n" + text + "\n}\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        import torchvision  # noqa: F401
    except ImportError:
        # transformers goes its own way without torchvision: it must look before the stand-in.
        from transformers import ViTForImageClassification  # noqa: F401

        stand_in_for_torchvision()
    torch.manual_seed(0)
    write_shapes()
    expected: dict[str, Any] = {"images": {}, "cases": {}}
    logits = {}
    for file in IMAGES:
        data = (arguments.images / file).read_bytes()
        expected["images"][file] = hashlib.sha256(data).hexdigest()
    for name, size in CASES:
        path = folder(name)
        run = hf_case if name.startswith("hf_") else timm_case
        for file in IMAGES:
            image = Image.open(arguments.images / file).convert("RGB")
            pixels, answer = run(path, image, size)
            key = f"{name}@{size}/{file}" if size else f"{name}/{file}"
            assert pixels.dtype == np.uint8
            expected["cases"][key] = {
                "shape": list(pixels.shape),
                "pixels_sha256": hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest(),
            }
            logits[key] = answer.astype(np.float32)
            print(key, answer.shape, float(np.abs(answer).max()), flush=True)
        # Two images must get answers that differ by far more than the tolerance of the test.
        first, second = (logits[k] for k in list(logits)[-2:])
        assert np.abs(first - second).max() > 0.01 * np.abs(first).max(), name
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    np.savez_compressed(HERE / "expected.npz", **logits)


if __name__ == "__main__":
    main()
