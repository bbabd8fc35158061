"""The classifiers of Hugging Face's models: their layers, and the names of their tensors.

A linear layer on pooled features; between the two, in the encoders of texts, a hidden layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunekit.methods.peft_names import family_of
from tunekit.models.spec import Activation, HeadSpec


@dataclass(frozen=True)
class HeadNames:
    """A family's classifier of whole examples."""

    logits: str
    """Module of the layer that gives the logits."""
    pooling: Literal["avg", "token", "token+avg", "last"]
    hidden: str | None = None
    """Module of the layer between pooling and logits."""
    activation: Activation = HeadSpec.activation
    """After the hidden layer."""
    bias: bool = True
    """Whether each logit has a bias."""

    def spec(self, dim: int) -> HeadSpec:
        """Returns what builds it on features of width `dim`."""
        return HeadSpec(
            kind="mlp" if self.hidden else "linear",
            pooling=self.pooling,
            hidden=(dim,) if self.hidden else (),
            activation=self.activation,
            bias=self.bias,
        )


POOLER = HeadNames("classifier", "token", "bert.pooler.dense", "tanh")
_DECODER = HeadNames("score", "last", bias=False)
_DINOV2 = HeadNames("classifier", "token+avg")
HEADS = {
    "bert.": POOLER,
    "roberta.": HeadNames("classifier.out_proj", "token", "classifier.dense", "tanh"),
    "distilbert.": HeadNames("classifier", "token", "pre_classifier", "relu"),
    "model.": _DECODER,
    "transformer.": _DECODER,
    "vit.": HeadNames("classifier", "token"),
    "dinov2.": _DINOV2,
    "dinov2_with_registers.": _DINOV2,
    "resnet.": HeadNames("classifier.1", "avg"),
}
"""By the attribute that holds the body, as in `peft_names`."""


def head_names(family: str) -> HeadNames:
    """Returns the names of the family's classifier.

    Raises:
        ModelError: they are not known.
    """
    return HEADS[family_of(family).body]
