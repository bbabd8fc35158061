"""A pretrained body: the network up to its features, its preprocessing, its own classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.sentence_folder import SentencePooling
from tunekit.models.spec import Activation
from tunekit.models.tokenizing import Tokenizer

Features = Literal["map", "tokens", "vector", "encoder_states", "decoder_states"]


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    """A layer below a classifier: ``activation(pooled @ kernel + bias)``."""

    kernel: np.ndarray
    """float32 [D, H]."""
    bias: np.ndarray
    """float32 [H]."""
    activation: Activation


@dataclass(frozen=True, eq=False)
class PretrainedHead:
    """The classifier that came with the weights: ``logits = hidden(pooled) @ kernel + bias``."""

    labels: tuple[str, ...]
    """One name per class, in the order of the logits."""
    pooling: Literal["avg", "max", "token", "token+avg", "last", "none"]
    """How features [B, ..., D] become the vector that the kernel takes.

    "token" is the first token, "last" the last that is no padding; on tokens "avg" and "max" leave
    the prefix tokens out; "token+avg" is the first token followed by the mean of the patch tokens,
    2 D wide; "none" takes features that are vectors already, or each token of a text.
    """
    kernel: np.ndarray
    """float32 [D, C], or [2 D, C] for "token+avg"."""
    bias: np.ndarray | None
    """float32 [C]; None where it has none."""
    hidden: HiddenLayer | None = None
    """The layer between pooling and kernel; None where there is none."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained network without its classifier, and what is needed to use it rightly."""

    keras: keras.Model
    """Takes normalised float32 images [B, H, W, 3] and returns features.

    Of tokens: takes {"token_ids", "padding_mask"}, both int32 [B, T] with the padding at the end
    masked by 0, and returns hidden states [B, T, D]; a decoder's are those after its final norm.
    """
    preprocessing: ImagePreprocessing | None
    """None where it takes tokens."""
    features: Features
    """What the features are: map [B, H', W', D], tokens [B, T, D] or vector [B, D] of an image.

    Of a text, hidden states [B, T, D]: of an encoder, where every token sees all others, or of a
    decoder, where each sees only those before it.
    """
    family: str
    """Kind of architecture, such as "resnet", "vit", "dinov2", "efficientnet"."""
    source: str
    """What the user named, to say where the weights came from."""
    prefix_tokens: int = 0
    """Class and register tokens before the patch tokens."""
    pretrained_head: PretrainedHead | None = None
    pooler: HiddenLayer | None = None
    """BERT's layer on its first token, on which its classifiers stand, where it came along."""
    license: str | None = None
    """Licence of the weights, where the source says it."""
    takes: Literal["images", "tokens"] = "images"
    vocabulary: int | None = None
    """How many token ids there are, from 0."""
    max_length_tokens: int | None = None
    """Longest sequence that it was made for."""
    tokenizer: Tokenizer | None = None
    """From text to token ids and back; None where it takes images, or the source has none."""
    without_tokenizer: str = "it takes images, not texts."
    """Why there is none, as a sentence."""
    sentence_pooling: SentencePooling | None = None
    """How its hidden states become a sentence's vector, where it was made for that."""
    language_head: keras.layers.Layer | None = None
    """Hidden states [B, T, D] to logits [B, T, V], where the source is a language model.

    A `TiedHead` shares the token embedding of `keras`; a Dense has a kernel of its own; a
    `MaskedHead`, of an encoder, has a layer before either.
    """

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return int(self.keras.output_shape[-1])

    def text_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer.

        Raises:
            ModelError: there is none.
        """
        if self.tokenizer is None:
            raise ModelError(
                f"the model on '{self.source}' reads no text: {self.without_tokenizer}"
            )
        return self.tokenizer
