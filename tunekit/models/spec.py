"""What a recipe says of the model: backbone and head. Importable without Keras or JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval, Lt

Dtype = Literal["float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16"]
Quantization = Literal["int8", "int4", "nf4"]
HeadKind = Literal["linear", "mlp", "cosine"]
Pooling = Literal["auto", "avg", "max", "gem", "token", "token+avg", "last", "attention", "none"]
Activation = Literal["relu", "gelu", "tanh"]
SidePixels = Annotated[int, Interval(ge=8, le=4096)]


@dataclass(frozen=True)
class BackboneSpec:
    """The pretrained body: where it comes from and how it is built."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    name: str = "efficientnet_lite0"
    """Bundled name, KerasHub preset, folder, or "keras.applications:ResNet50"."""
    image_size: SidePixels | tuple[SidePixels, SidePixels] | None = None
    """Input side, or (height, width), in pixels; null keeps the size of the pretraining."""
    dtype: Dtype = "float32"
    """Precision of the weights and computations; "mixed_*" keeps the weights in float32."""
    pretrained: bool = True
    """False builds the same architecture with fresh weights."""
    blocks: Annotated[int, Ge(1)] | None = None
    """How many blocks to keep, from the first; null keeps all. The values are the pretrained."""

    quantize: Quantization | None = None
    """Form in which the frozen kernels are kept: 8 bits, 4 bits, or 4 bits of a normal distribution
    (QLoRA); null keeps them as they are."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (field, message) for each value that no backbone accepts."""
        if not self.name.strip():
            return [("name", "expected a preset name or a folder, got an empty string.")]
        return []


@dataclass(frozen=True)
class HeadSpec:
    """What is put on the backbone's features to give one logit per label."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: HeadKind = "linear"
    """One dense layer, a stack of them, or cosine similarity to one prototype per label."""
    pooling: Pooling = "auto"
    """How features become one vector; "auto" is the way the backbone was pretrained.

    Of a text, "auto" is what a sentence encoder's folder says, else "token", the first token, as
    BERT does it, or "last", the last that is no padding, as decoders do; "none" gives logits for
    each token, all others leave padding out.
    """
    hidden: tuple[Annotated[int, Ge(1)], ...] = ()
    """Widths of the hidden layers of an "mlp" head; empty: one layer of 256."""
    activation: Activation = "gelu"
    """After each hidden layer of an "mlp" head."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Fraction of the pooled features dropped in training."""
    bias: bool = True
    """Whether each label has a bias ("cosine" has none)."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return (self.hidden or (256,)) if self.kind == "mlp" else ()

    def issues(self) -> list[tuple[str, str]]:
        """Returns (field, message) for each combination that does not fit together."""
        if self.kind == "mlp":
            return []
        given = {"hidden": self.hidden, "activation": self.activation != HeadSpec.activation}
        return [
            (
                field,
                f"only an 'mlp' head has hidden layers, and kind is '{self.kind}'; "
                f"set kind: mlp or leave {field} out.",
            )
            for field, is_given in given.items()
            if is_given
        ]
