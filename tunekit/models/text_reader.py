"""What a source reads texts with, its weights left where they are: tokenizer and longest text."""

from __future__ import annotations

import json
import tempfile
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
    if config.get("model_type") in FAMILIES:
        return _of_folder(path, config)
    return TextReader.of(load_backbone(source, replace(spec, pretrained=False)))


def _of_gguf(path: Path) -> TextReader:
    file, own = gguf.read_gguf(path), path.with_name("tokenizer.json")
    files = gguf_files(file.metadata, str(path), rebuild=not own.is_file())
    if own.is_file():
        files["tokenizer.json"] = json.loads(own.read_text(encoding="utf-8"))
    files["config.json"] = dict(file.config)
    with tempfile.TemporaryDirectory(prefix="tunekit-gguf-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_text(json.dumps(content), encoding="utf-8")
        return _of_folder(Path(folder), file.config)


def _of_folder(folder: Path, config: Mapping[str, Any]) -> TextReader:
    kind = config["model_type"]
    longest = config.get(FAMILIES[kind].max_length)
    if longest is not None and kind == "roberta":
        longest -= config.get("pad_token_id", 1) + 1  # Its positions begin behind the padding's.
    most = min(filter(None, (longest, longest_sentence(folder))), default=None)
    return TextReader(Tokenizer(tokenizer_files.read(folder, kind)), most)
