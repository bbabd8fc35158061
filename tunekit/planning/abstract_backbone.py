"""The backbone of a recipe in shapes only, from a config that is at hand or from the catalogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tunekit.errors import ModelError
from tunekit.models import catalogue
from tunekit.models.backbone import Backbone
from tunekit.models.loading import has_depth, load_backbone
from tunekit.planning.stand_ins import stand_in_tokenizer
from tunekit.recipe import Recipe


def abstract_backbone(recipe: Recipe, blocks: int | None, notes: list[str]) -> Backbone:
    """Returns the backbone with a tokenizer; to be called where variables have shapes only.

    Args:
        recipe: names it. What the catalogue knows the architecture of is not fetched.
        blocks: how many blocks to build, from the first; `None` builds all.
        notes: gains what stands in for what.

    Raises:
        ModelError: nothing says how it is built.
    """
    spec = replace(recipe.backbone, pretrained=False)
    name = catalogue.name_of(spec.name) or spec.name
    if name != spec.name:
        notes.append(f"'{spec.name}' is built as '{name}' of the catalogue; nothing was fetched.")
    depth = None
    if blocks is not None and spec.blocks is None and has_depth(name):
        depth = blocks
    elif blocks is not None:
        spec = replace(spec, blocks=min(blocks, spec.blocks or blocks))
    try:
        backbone = load_backbone(name, spec, seed=recipe.seed, depth=depth)
    except ModelError as error:
        if Path(name).expanduser().exists() or name in catalogue.names():
            raise
        raise ModelError(
            f"{error} To plan, a Hugging Face folder with its config.json will do, or a name of "
            f"the catalogue. {catalogue.listed(name)}"
        ) from error
    if backbone.takes == "tokens" and backbone.tokenizer is None:
        notes.append("a tokenizer stands in for the model's own: every word is one token.")
        backbone = replace(backbone, tokenizer=stand_in_tokenizer())
    return backbone
