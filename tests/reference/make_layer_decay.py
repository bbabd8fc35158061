"""Writes layer_decay.json: the factors that timm's `param_groups_layer_decay` gives real models.

Run from the repository, in an environment of its own:

    pip install torch timm
    python -m tests.reference.make_layer_decay
"""

from __future__ import annotations

import json
import re

from tests.reference.folders import HERE
from tests.reference.make_references import stand_in_for_torchvision

MODELS = ("vit_tiny_patch16_224", "resnet50", "tf_efficientnet_lite0")
DECAY = 0.65
# The part of a network that a parameter is in: a block, or a layer beside the blocks.
_PART = re.compile(r"((?:layer\d+|blocks)\.\d+(?:\.\d+(?=\.\D))?|[a-z_]+\d?)")


def scales(name: str) -> dict[str, float]:
    """Returns timm's factor of the learning rate for each part of a model."""
    import timm
    from timm.optim import param_groups_layer_decay

    model = timm.create_model(name, pretrained=False, num_classes=2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for group in param_groups_layer_decay(model, layer_decay=DECAY):
        for parameter in group["params"]:
            match = _PART.match(names[id(parameter)])
            assert match is not None
            assert found.setdefault(match[1], group["lr_scale"]) == group["lr_scale"], match[1]
    return found


def main() -> None:
    """Writes the table."""
    stand_in_for_torchvision()
    import timm

    table = {name: scales(name) for name in MODELS}
    written = {"timm": timm.__version__, "layer_decay": DECAY, "scales": table}
    (HERE / "layer_decay.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
