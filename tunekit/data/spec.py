"""What a recipe says about data: where it is, how it is augmented, how it is batched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, Lt, MinLen

SourceKind = Literal[
    "auto", "arrays", "folder", "csv", "parquet", "tfds", "jsonl", "json", "text", "datasets"
]
SplitName = Annotated[str, MinLen(1)]
_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class MixedSpec:
    """Further examples, drawn among those of the data: such as general text against forgetting."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    path: Annotated[str, MinLen(1)]
    """Of the examples, in any form that `data.path` has; their columns are found by themselves."""
    weight: Annotated[float, Gt(0)] = 0.1
    """How often they come, the data themselves counting 1."""


@dataclass(frozen=True)
class DataSpec:
    """Where the examples are and how they are split."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    path: str | None = None
    """Image folder; .csv, .parquet, .jsonl, .json or .txt file, or a folder of them; folder of
    Hugging Face datasets; prepared TFDS folder, or "tfds:name[:version]"."""
    kind: SourceKind = "auto"
    """Format of the path; auto recognises it."""
    image_column: SplitName = "image"
    """Column of a table or TFDS feature that holds the image or its path."""
    label_column: SplitName = "label"
    """Column of a table or TFDS feature that holds the label."""
    text_column: SplitName | None = None
    """Column that holds the text, the words or the question; null finds it by its name."""
    pair_column: SplitName | None = None
    """Column of the second text of a pair; null finds it where the task is of pairs."""
    prompt_column: SplitName | None = None
    """Column of the prompt; null finds it by its name, as those of messages."""
    response_column: SplitName | None = None
    """Column of the response to the prompt; null finds it by its name."""
    mix: tuple[MixedSpec, ...] = ()
    """Further examples of texts, drawn among these while training."""
    label_separator: Annotated[str, MinLen(1)] = "|"
    """Separates several labels in one cell; a table where it occurs is multi-label."""
    train: SplitName | None = None
    """Split name, sub-folder or file to train on; null finds it."""
    validation: SplitName | None = None
    """Split name, sub-folder or file to validate on; null finds it or splits train."""
    test: SplitName | None = None
    """Split name, sub-folder or file to test on; null finds it or has none."""
    validation_fraction: Annotated[float, Ge(0), Lt(1)] = 0.2
    """Share of train set aside, stratified by label, where there is no validation split."""
    labels: tuple[str, ...] | None = None
    """Label names in the order of the head's outputs; null sorts the names found."""
    on_unreadable: Literal["error", "skip"] = "error"
    """What an image that cannot be decoded, or a row that cannot be read, does; skipped ones are
    counted."""
    on_duplicate: Literal["error", "warn", "ignore"] = "error"
    """What the same image or text in two splits, or under two labels, does."""
    max_examples: Annotated[int, Gt(0)] | None = None
    """Keeps this many examples of each split, drawn by seed and stratified; null keeps all."""
    split_seed: Annotated[int, Ge(0)] | None = None
    """Draws the validation split and max_examples; null: the recipe's seed."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (relative path, message) for each pair of fields that cannot go together."""
        found: list[tuple[str, str]] = []
        if self.kind == "arrays" and self.path is not None:
            found.append(
                (
                    "kind",
                    f"'arrays' takes its examples from Python, not from path {self.path!r}; "
                    "leave kind at 'auto'",
                )
            )
        if self.labels is not None:
            repeated = sorted({name for name in self.labels if self.labels.count(name) > 1})
            if repeated:
                found.append(("labels", f"expected each name once, but {repeated} repeat"))
            if len(self.labels) < 2:
                found.append(("labels", f"expected at least 2 names, got {list(self.labels)}"))
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        for later, earlier in (
            ("validation", "train"),
            ("test", "train"),
            ("test", "validation"),
        ):
            if named[later] is not None and named[later] == named[earlier]:
                found.append((later, f"{named[later]!r} is also {earlier}; name another split"))
        return found


@dataclass(frozen=True)
class RandAugmentSpec:
    """RandAugment (Cubuk et al. 2019): `num_ops` random operations of one strength."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    num_ops: Annotated[int, Interval(ge=1, le=14)] = 2
    """Operations per image."""
    magnitude: Annotated[float, Interval(ge=0, le=10)] = 9.0
    """Strength of each, on the paper's scale of 10."""


@dataclass(frozen=True)
class AugmentSpec:
    """How training images are varied."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    horizontal_flip: bool = False
    """Mirrors left and right in half of the images."""
    vertical_flip: bool = False
    """Mirrors top and bottom in half of the images."""
    random_resized_crop: tuple[float, float] | None = None
    """Smallest and largest share of the image's area to crop; null uses the whole image."""
    randaugment: RandAugmentSpec | None = None
    """Random colour and geometry operations; null has none."""
    mixup: Annotated[float, Ge(0)] = 0.0
    """Alpha of the beta law that blends pairs of images; 0 is off."""
    cutmix: Annotated[float, Ge(0)] = 0.0
    """Alpha of the beta law that pastes boxes between images; 0 is off."""

    @property
    def varies(self) -> bool:
        """Whether an image by itself is another in every pass."""
        flips = self.horizontal_flip or self.vertical_flip
        return flips or self.random_resized_crop is not None or self.randaugment is not None

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are blended or pasted into each other."""
        return bool(self.mixup or self.cutmix)

    def issues(self) -> list[tuple[str, str]]:
        """Returns (relative path, message) for each value that makes no sense."""
        area = self.random_resized_crop
        if area is not None and not 0 < area[0] <= area[1] <= 1:
            return [
                (
                    "random_resized_crop",
                    "expected shares of the area with "
                    f"0 < smallest <= largest <= 1, such as [0.35, 1.0]; got {list(area)}",
                )
            ]
        return []


@dataclass(frozen=True)
class BatchSpec:
    """How examples become batches."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    size: Annotated[int, Ge(1)] = 32
    """Examples per optimizer step."""
    accumulate: Annotated[int, Ge(1)] | Literal["auto"] = 1
    """Micro-batches that one step is computed in, to save memory; auto: the fewest that fit."""
    workers: Annotated[int, Ge(0)] | None = None
    """Threads that decode images; null uses the cores, 0 decodes in the caller's thread."""
    balanced: bool = False
    """Draws every class equally often."""
    prefetch: Annotated[int, Ge(1)] = 2
    """Batches decoded ahead of the step."""
    max_length: Annotated[int, Ge(2)] | None = None
    """Longest text in tokens, cut beyond; null: that of the model, at most 512."""
    packing: bool = False
    """Whether several texts fill one row of `max_length` tokens, each seeing itself alone; `size`
    then counts rows."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step; 1 where the number is still to be found."""
        return 1 if self.accumulate == "auto" else self.accumulate

    def issues(self) -> list[tuple[str, str]]:
        """Returns (relative path, message) where size does not divide into micro-batches."""
        if self.size % self.micro_batches:
            return [
                (
                    "accumulate",
                    f"size {self.size} does not divide into {self.accumulate} "
                    f"micro-batches; choose a divisor of {self.size}",
                )
            ]
        return []


@dataclass(frozen=True)
class CacheSpec:
    """Where the outputs of the frozen part of the network are kept, computed once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    store: Literal["auto", "ram", "disk", "off"] = "auto"
    """Memory, or files that later runs reuse; auto: memory, then disk, where it saves time."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision in which they are kept."""
    views: Annotated[int, Ge(0)] = 0
    """Augmented versions of each image to keep, used in turn; 0 keeps none of augmented images."""
    folder: str | None = None
    """Folder of the files; null: tunekit's own below the user's cache folder."""
