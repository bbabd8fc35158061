"""The classifier in a Hugging Face folder of a token model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.models.backbone import HiddenLayer, PretrainedHead
from tunekit.models.head_names import POOLER, HeadNames
from tunekit.models.labels import distinct
from tunekit.models.torch_weights import TorchWeights

_OF_TOKENS = {"model.": "score"}
"""Module of a family's classifier of tokens, by its body, where it is not "classifier"."""


def classifier(
    weights: TorchWeights, config: Mapping[str, Any], names: HeadNames, body: str
) -> PretrainedHead | None:
    """Returns the classifier of texts, of tokens or of answers, where the folder's model has one.

    Those of texts and of tokens have tensors of the same names, so the config's "architectures"
    decides.

    Args:
        weights: of the folder.
        config: its config.json.
        names: of the family's classifier of texts.
        body: the attribute that holds the body, with a dot: "bert.".

    Raises:
        ModelError: a tensor of the classifier is missing.
    """
    architectures = " ".join(config.get("architectures") or ())
    if "ForQuestionAnswering" in architectures:
        return _of_tokens(weights, "qa_outputs", ("start", "end"))
    named = {int(index): label for index, label in config.get("id2label", {}).items()}

    def labels(weight: Any) -> tuple[str, ...]:
        return distinct(named.get(index, str(index)) for index in range(len(weight)))

    if "ForTokenClassification" in architectures:
        module = _OF_TOKENS.get(body, "classifier")
        return _of_tokens(weights, module, labels(weights.take(f"{module}.bias")))
    if "ForSequenceClassification" not in architectures:
        return None
    weight = weights.take(f"{names.logits}.weight")
    return PretrainedHead(
        labels(weight),
        names.pooling,
        weight.T,
        weights.take(f"{names.logits}.bias") if names.bias else None,
        _hidden_layer(weights, names, body) if names.hidden else None,
    )


def _of_tokens(weights: TorchWeights, module: str, labels: tuple[str, ...]) -> PretrainedHead:
    kernel, bias = weights.take(f"{module}.weight").T, weights.take(f"{module}.bias")
    return PretrainedHead(labels, "none", kernel, bias)


def pooler(weights: TorchWeights, names: HeadNames, body: str) -> HiddenLayer | None:
    """Returns BERT's layer on the first token, which folders of other tasks may hold as well."""
    if names is not POOLER or "pooler.dense.weight" not in weights:
        return None
    return _hidden_layer(weights, names, body)


def _hidden_layer(weights: TorchWeights, names: HeadNames, body: str) -> HiddenLayer:
    module = str(names.hidden).removeprefix(body)
    kernel, bias = weights.take(f"{module}.weight").T, weights.take(f"{module}.bias")
    return HiddenLayer(kernel, bias, names.activation)
