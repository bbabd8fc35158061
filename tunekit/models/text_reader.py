"""What a source reads texts with, its weights left where they are: tokenizer and longest text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunekit.errors import ModelError
from tunekit.models import gguf, tokenizer_files
from tunekit.models.backbone import Backbone
from tunekit.models.gguf_tokenizer import tokenizer_files as gguf_files
from tunekit.models.loading import load_backbone
from tunekit.models.sentence_folder import longest_sentence
from tunekit.models.spec import BackboneSpec
from tunekit.models.text import FAMILIES
from tunekit.models.tokenizing import Tokenizer
from tunekit.models.torch_weights import read_json


@dataclass(frozen=True, eq=False)
class TextReader:
    """How a model reads texts."""

    tokenizer: Tokenizer
    max_length_tokens: int | None
    """Longest sequence that the model was made for, where that is known."""

    @classmethod
    def of(cls, backbone: Backbone) -> TextReader:
        """Returns that of a backbone.

        Raises:
            ModelError: it takes images, or has no tokenizer.
        """
        if backbone.takes != "tokens":
            raise ModelError(
                f"'{backbone.source}' takes {backbone.takes}, and the data are texts: choose a "
                "model of texts."
            )
        return cls(backbone.text_tokenizer(), backbone.max_length_tokens)


def read_text_reader(source: str, spec: BackboneSpec) -> TextReader:
    """Returns how the model that `source` names reads texts; see `load_backbone` for sources.

    Of Hugging Face folders and GGUF files no weights are read, so that it is quick however large
    they are; of others the network is built.

    Raises:
        ModelError: there is no such source, or none that reads texts.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return _of_gguf(path)
    config = read_json(path / "config.json")
    if config.get("model_type") not in FAMILIES:
        return TextReader.of(load_backbone(source, replace(spec, pretrained=False)))
    tokenizer = Tokenizer(tokenizer_files.read(path, config["model_type"]))
    return TextReader(tokenizer, _positions(path, config))


def _of_gguf(path: Path) -> TextReader:
    file, own = gguf.read_gguf(path), path.with_name("tokenizer.json")
    contents = gguf_files(file.metadata, str(path), rebuild=not own.is_file())
    files = {name: json.dumps(content) for name, content in contents.items()}
    if own.is_file():
        files["tokenizer.json"] = own.read_text(encoding="utf-8")
    return TextReader(Tokenizer(files), file.config["max_position_embeddings"])


def _positions(folder: Path, config: Mapping[str, Any]) -> int | None:
    longest = config.get(FAMILIES[config["model_type"]].max_length)
    if longest is not None and config["model_type"] == "roberta":
        longest -= config.get("pad_token_id", 1) + 1  # Its positions begin behind the padding's.
    return min(filter(None, (longest, longest_sentence(folder))), default=None)
