"""The tasks as written in a recipe: what is asked of the model. Importable without Keras or JAX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, Lt, MinLen

from tunekit.errors import Issue, RecipeError, did_you_mean

_STRICT: Any = {"extra": "forbid", "use_attribute_docstrings": True}
Loss = Literal["mse", "mae", "huber"]
TagScheme = Literal["auto", "none", "bio", "bilou"]
Contrast = Literal["multiple_negatives", "cosine", "labels"]
LossOn = Literal["responses", "last_response", "all"]


@dataclass(frozen=True, kw_only=True)
class ClassificationSpec:
    """Labels of images or of texts, and how their loss counts."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: Literal["auto", "image_classification", "text_classification"] = "auto"
    """The objective; auto: by the data, images or texts with labels, or dialogues to learn from."""
    multi_label: bool | Literal["auto"] = "auto"
    """True: any number of labels each (sigmoid); False: one (softmax); auto: as in the data."""
    label_smoothing: Annotated[float, Ge(0.0), Lt(1.0)] = 0.0
    """Share of each target spread evenly over the classes (multi-label: pulled towards 0.5)."""
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """How much each class counts, in label order; balanced: inversely to its frequency."""
    top_k: Annotated[int, Ge(1)] = 5
    """The k of top-k accuracy."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (dotted path, message) of each mistake that no single field's type can show."""
        if self.class_weights is None or isinstance(self.class_weights, str):
            return []
        found = [
            (f"class_weights[{i}]", f"expected a finite weight of 0 or more, got {weight}")
            for i, weight in enumerate(self.class_weights)
            if not math.isfinite(weight) or weight < 0
        ]
        if not found and sum(self.class_weights) == 0:
            message = "expected at least one weight above 0; leave it out to count classes equally"
            found.append(("class_weights", message))
        return found


@dataclass(frozen=True, kw_only=True)
class RegressionSpec:
    """A number for each text, or for each pair of texts."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: Literal["text_regression"] = "text_regression"
    """The objective."""
    loss: Loss = "mse"
    """Squared error, absolute error, or Huber's: squared below one standard deviation."""


@dataclass(frozen=True, kw_only=True)
class TokenClassificationSpec:
    """A label for each word: named entities, parts of speech."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: Literal["token_classification"] = "token_classification"
    """The objective."""
    scheme: TagScheme = "auto"
    """How tags mark entities (B-PER, I-PER); none: each word by itself; auto: as in the data."""
    label_all_pieces: bool = False
    """Whether every piece of a word counts in the loss, or its first alone."""


@dataclass(frozen=True, kw_only=True)
class SpanQASpec:
    """Where in a text the answer to a question stands (SQuAD)."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: Literal["span_qa"] = "span_qa"
    """The objective."""
    stride: Annotated[int, Ge(0)] = 128
    """Tokens that two windows of a long text share."""
    max_answer_tokens: Annotated[int, Ge(1)] = 30
    """Longest answer that is given."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """One vector a text, near to those of texts that mean the same."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: Literal["embedding"] = "embedding"
    """The objective."""
    contrast: Contrast | Literal["auto"] = "auto"
    """Pairs against the rest of the batch; pairs with a score; or pairs drawn by label, as SetFit
    does. auto: by the columns."""
    temperature: Annotated[float, Gt(0)] = 0.05
    """Cosines are divided by it, where pairs stand against the rest of the batch."""
    pairs_per_text: Annotated[int, Ge(1)] = 20
    """Pairs drawn with each text, half of them of its own label, where they are drawn by label."""


@dataclass(frozen=True, kw_only=True)
class MaskedLMSpec:
    """Hidden tokens of plain text, to be found again: an encoder learns a domain's language."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: Literal["masked_lm"] = "masked_lm"
    """The objective."""
    mask_probability: Annotated[float, Gt(0), Lt(1)] = 0.15
    """Share of tokens to be found: of these 80 % are hidden, 10 % replaced and 10 % left."""
    whole_words: bool = False
    """Whether the pieces of a word are hidden together."""


@dataclass(frozen=True, kw_only=True)
class LanguageModellingSpec:
    """The next token: of plain text, or of the responses in dialogues."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: Literal["causal_lm", "sft"] = "sft"
    """Plain text, every token of which counts; or dialogues, instructions and replayed text."""
    loss_on: LossOn = "responses"
    """What counts in a dialogue: every response, the last one, or all of it."""
    template: Annotated[str, MinLen(1)] | None = None
    """Format of a prompt, such as "### Instruction: {prompt} ### Response: "; null: the
    tokenizer's chat template."""
    system: str | None = None
    """System message of dialogues that have none; null leaves it to the chat template."""
    samples: Annotated[int, Interval(ge=0, le=1000)] = 32
    """Prompts of the held-out data that base and tuned model answer, to be compared: BLEU, chrF,
    ROUGE, and some side by side."""
    max_new_tokens: Annotated[int, Ge(1)] = 64
    """Longest answer in evaluation."""


TaskSpec = (
    ClassificationSpec
    | RegressionSpec
    | TokenClassificationSpec
    | SpanQASpec
    | EmbeddingSpec
    | MaskedLMSpec
    | LanguageModellingSpec
)

_BY_NAME: dict[str, Any] = {
    "auto": ClassificationSpec,
    "image_classification": ClassificationSpec,
    "text_classification": ClassificationSpec,
    "text_regression": RegressionSpec,
    "token_classification": TokenClassificationSpec,
    "span_qa": SpanQASpec,
    "embedding": EmbeddingSpec,
    "masked_lm": MaskedLMSpec,
    "causal_lm": LanguageModellingSpec,
    "sft": LanguageModellingSpec,
}
TASK_NAMES = tuple(_BY_NAME)


def named_task(name: str) -> TaskSpec:
    """Returns the task of a name, with its defaults."""
    return _BY_NAME[name](name=name)


def labels_of_images(spec: TaskSpec, what: str) -> ClassificationSpec:
    """Returns the task of images with labels, which alone `what` is for.

    Raises:
        RecipeError: another one is asked for.
    """
    if spec.name not in ("auto", "image_classification"):
        raise RecipeError([Issue("task", f"{what} is for image_classification; got {spec.name}.")])
    assert isinstance(spec, ClassificationSpec)
    return spec


def spelt_out(tree: Any) -> Any:
    """Returns what a recipe says of its task with a name; a word alone is one.

    Fields without a name are those of the one task that has them all.
    """
    tree = {"name": tree} if isinstance(tree, str) else tree
    if not isinstance(tree, dict) or "name" in tree:
        return tree
    return {"name": "auto", **tree}


def name_mistake(tree: Any) -> str | None:
    """Returns what is wrong with how a recipe names its task, spelt out; or `None`."""
    name = tree.get("name") if isinstance(tree, dict) else tree
    if name in TASK_NAMES:
        return None
    near = did_you_mean(str(name), TASK_NAMES)
    return f"expected {', '.join(TASK_NAMES)}; got {name!r}.{near}"
