"""The model: raw pixels, a backbone, heads on top, one structural name per variable."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import keras
import numpy as np
from PIL import Image

from tunekit.data.feature_store import FeatureStore
from tunekit.data.images import MemoryImages
from tunekit.errors import ModelError, did_you_mean
from tunekit.models.backbone import Backbone, PretrainedHead
from tunekit.models.cpu_memory import keep_freed_memory
from tunekit.models.depth import Group, depth_groups
from tunekit.models.forward import Forward
from tunekit.models.heads import build_head
from tunekit.models.layer_tree import LayerTree, layer_tree
from tunekit.models.loading import load_backbone
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.spec import BackboneSpec, Dtype, HeadSpec
from tunekit.names import layer_names, structural_names, variable_roles

_HEAD = "label"
"""Name of the one head of a classifier; the graph below takes any number."""

Images = Sequence[Any] | np.ndarray | Image.Image | str | Path


class Model:
    """A backbone with its preprocessing and, once the labels are known, a head.

    Example:
        >>> model = load_model("efficientnet_lite0", labels=["cat", "dog"])
        >>> model.logits([np.zeros((300, 200, 3), "uint8")]).shape
        (1, 2)

    Attributes:
        backbone: the pretrained body, and where it came from.
        keras: functional keras.Model "model": raw pixels 0..255, float32 [B, H, W, 3], to logits
            [B, C], or to features while there are no labels. Replaced by `replace_head`.
        labels: names of the C labels; empty while there is no head.
        head_spec: how the head is built, or will be.
        multi_label: whether any number of labels may hold at once.
        features: outputs of its frozen part that fine-tuning keeps in memory, for the next head or
            phase; `None` lets go of them.
    """

    _groups: tuple[Group, ...] | None = None
    """Found when first asked for; forgotten with the graph that they are of."""

    def __init__(
        self,
        backbone: Backbone,
        labels: Sequence[str] = (),
        head: HeadSpec | str | None = None,
        *,
        seed: int = 0,
        multi_label: bool = False,
    ) -> None:
        """Puts a fresh head for `labels` on `backbone`; no labels, no head.

        Raises:
            ModelError: a label occurs twice, or the head does not fit the backbone.
        """
        self.backbone = backbone
        self.multi_label = multi_label
        self.features: FeatureStore | None = None
        self._body = _named_backbone(backbone.keras)
        self._take_head(_checked_labels(labels), _head_spec(head), seed)

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """From an image of any size to the pixels that `keras` takes."""
        return self.backbone.preprocessing

    def variables(self) -> dict[str, keras.Variable]:
        """Returns every variable under its structural name: "backbone/...", "heads/label/..."."""
        return structural_names(self.keras)

    def weight_names(self) -> tuple[str, ...]:
        """Returns the names of the variables that can be trained: no statistics, no seeds.

        What `trainable` flags say has no part in it.
        """
        roles = variable_roles(self.keras)
        return tuple(name for name, role in roles.items() if role == "weight")

    def norm_layers(self) -> frozenset[str]:
        """Returns the names of the normalisation layers, of Keras and of others."""
        layers = layer_names(self.keras).items()
        return frozenset(name for name, layer in layers if "Norm" in type(layer).__name__)

    def groups(self) -> tuple[Group, ...]:
        """Returns stem, blocks, top and heads: together every variable, none twice."""
        if self._groups is None:
            self._groups = depth_groups(self)
        return self._groups

    def layers(self, trains: Collection[str] | None = None) -> LayerTree:
        """Returns the groups as a tree to print.

        Args:
            trains: structural names of what trains, to mark; `None` marks nothing.
        """
        return layer_tree(self.groups(), trains)

    def logits(self, images: Images, *, batch_size: int = 32) -> np.ndarray:
        """Returns float32 logits [N, C] of N images, in inference mode.

        Args:
            images: file paths, PIL images or arrays [H, W, 3] with pixels 0..255, of any sizes; an
                array [N, H, W, 3]; or a single path or image.
            batch_size: images at a time, at most; one program is compiled for each size.

        Raises:
            ModelError: the model has no head.
            DataError: an image cannot be read.
        """
        if not self.labels:
            raise ModelError(
                f"the model on '{self.backbone.source}' has no head yet, so it gives no logits. "
                "Fine-tune it, or call replace_head(labels=[...])."
            )
        items = MemoryImages(_listed(images))
        batches = [self.apply(batch) for batch in self._batches(items, batch_size)]
        # The empty array gives the shape [0, C] where there are no images.
        logits = np.concatenate([np.zeros((0, len(self.labels)), np.float32), *batches])
        return logits[: len(items)]

    def apply(
        self, pixels: np.ndarray, values: Mapping[str, jax.Array] | None = None
    ) -> np.ndarray:
        """Returns float32 outputs [B, ...] in inference mode, by a program compiled once a shape.

        Args:
            pixels: [B, H, W, 3], 0..255, of the size that `preprocessing` gives.
            values: of every variable by structural name; `None` takes the model's own.
        """
        values = self._forward.values() if values is None else values
        return np.asarray(self._program(dict(values), pixels), np.float32)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Within the block an error, but not Ctrl-C, gives the model its earlier head back."""
        before = dict(vars(self))
        try:
            yield
        except Exception:
            vars(self).update(before)
            raise

    def replace_head(
        self,
        labels: Sequence[str],
        head: HeadSpec | str | None = None,
        keep: bool = True,
        seed: int = 0,
        *,
        multi_label: bool | None = None,
    ) -> Model:
        """Puts a new head on this model and returns the model; on an error the old head stays.

        Args:
            labels: names of the new labels.
            head: a HeadSpec or a kind ("linear", "mlp", "cosine"); `None` is as before.
            keep: labels known to both heads keep their column of the last kernel, and their bias,
                where the two heads are alike but for their labels.
            seed: of the fresh values.
            multi_label: `None` is as before.

        Raises:
            ModelError: there are no labels, one occurs twice, or the head does not fit.
        """
        checked = _checked_labels(labels)
        if not checked:
            raise ModelError("replace_head needs at least one label, got none.")
        spec = self.head_spec if head is None else _head_spec(head)
        self._take_head(checked, spec, seed, keep_from=self if keep and self.labels else None)
        if multi_label is not None:
            self.multi_label = multi_label
        return self

    def fresh_head_values(self, seed: int) -> dict[str, jax.Array]:
        """Returns what the head's variables would hold were it made anew, by structural name."""
        head = self._head(self.labels, self.head_spec, seed)
        return {f"heads/{_HEAD}/{name}": v.value for name, v in _weights(head).items()}

    def _take_head(
        self, labels: tuple[str, ...], spec: HeadSpec, seed: int, keep_from: Model | None = None
    ) -> None:
        heads = {_HEAD: self._head(labels, spec, seed)} if labels else {}
        if keep_from is not None:
            _keep_rows(keep_from.keras, keep_from.labels, heads[_HEAD], labels)
        graph = _assemble(self._body, self.preprocessing, heads)
        forward = Forward.of(graph)
        program = jax.jit(
            lambda values, pixels: forward(values, pixels.astype("float32"), training=False)[0]
        )
        # Nothing below can fail: the model changes whole or not at all.
        self.keras, self.labels, self.head_spec = graph, labels, spec
        self._forward, self._program = forward, program
        self._groups = None

    def _head(self, labels: tuple[str, ...], spec: HeadSpec, seed: int) -> keras.Model:
        return build_head(
            spec,
            features=self.backbone.features,
            dim=self.backbone.dim,
            labels=labels,
            name=_HEAD,
            seed=seed,
            prefix_tokens=self.backbone.prefix_tokens,
        )

    def _batches(self, images: MemoryImages, largest: int) -> Iterator[np.ndarray]:
        """Yields pixels [B, H, W, 3]; the last batch is filled up with its last image."""
        count = len(images)
        # Powers of two, so that calls with few images share a handful of programs.
        size = min(largest, 1 << max(count - 1, 0).bit_length())
        for start in range(0, count, size):
            rows = range(start, min(start + size, count))
            batch = [self.preprocessing.to_pixels(images.read(row)) for row in rows]
            yield np.stack(batch + batch[-1:] * (size - len(batch)))


def load_model(
    source: str | Path | keras.Model,
    *,
    image_size: int | tuple[int, int] | None = None,
    labels: Sequence[str] | None = None,
    head: HeadSpec | str | None = None,
    dtype: Dtype = "float32",
    pretrained: bool = True,
    blocks: int | None = None,
    seed: int = 0,
) -> Model:
    """Returns the model that `source` names, ready to predict or to be fine-tuned.

    With `labels` it has a fresh head. Without, it has the classifier that came with the weights;
    or no head, where there came none or `head` asks for another: `finetune` then makes it.

    Args:
        source: bundled name, preset, folder, "keras.applications:Name", or functional keras.Model.
        image_size: side, or (height, width), in pixels; `None` is that of the pretraining.
        labels: names of the classes.
        head: a HeadSpec, or a kind: "linear", "mlp", "cosine".
        dtype: precision of the backbone; the head is always float32.
        pretrained: False gives the same architecture with fresh weights.
        blocks: how many blocks to keep, from the first; `None` keeps all.
        seed: of everything fresh.

    Raises:
        ModelError: the source cannot be loaded, or the head does not fit it.

    Example:
        >>> len(load_model("efficientnet_lite0").labels)
        1000
    """
    keep_freed_memory()
    spec = BackboneSpec(str(source), image_size, dtype, pretrained, blocks)
    backbone = load_backbone(source, spec, seed=seed)
    if labels is not None or head is not None or backbone.pretrained_head is None:
        return Model(backbone, labels or (), head, seed=seed)
    return with_own_head(backbone, backbone.pretrained_head)


def with_own_head(backbone: Backbone, own: PretrainedHead) -> Model:
    """Returns `backbone` with the classifier that came with its weights.

    A label that occurs again is numbered; ImageNet has two kinds of "crane".
    """
    pooling = "auto" if own.pooling == "none" else own.pooling
    # "token+avg" is what some checkpoints come with.
    model = Model(backbone, _numbered(own.labels), HeadSpec(pooling=cast(Any, pooling)))
    variables = model.variables()
    variables[f"heads/{_HEAD}/logits/kernel"].assign(own.kernel)
    variables[f"heads/{_HEAD}/logits/bias"].assign(own.bias)
    return model


def _assemble(
    body: keras.Model, preprocessing: ImagePreprocessing, heads: dict[str, keras.Model]
) -> keras.Model:
    """One graph: pixels, "preprocess", "backbone", and "heads" with one model for each head."""
    pixels = keras.Input((*preprocessing.image_size_px, 3), dtype="float32", name="pixels")
    # Keras annotates one number; one for each channel broadcasts.
    scale, offset = cast(Any, preprocessing.scale), cast(Any, preprocessing.offset)
    normalise = keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocess")
    features = body(normalise(pixels))
    if not heads:
        return keras.Model(pixels, features, name="model")
    inputs = keras.Input(features.shape[1:], dtype="float32", name="features")
    logits = {name: head(inputs) for name, head in heads.items()}
    outputs = next(iter(logits.values())) if len(logits) == 1 else logits
    tops = keras.Model(inputs, outputs, name="heads")
    return keras.Model(pixels, tops(features), name="model")


def _named_backbone(body: keras.Model) -> keras.Model:
    """The same layers as one sublayer called "backbone"; the model given keeps its name."""
    return keras.Model(body.inputs[0], body.outputs[0], name="backbone")


def _keep_rows(
    old_model: keras.Model, old: tuple[str, ...], head: keras.Model, new: tuple[str, ...]
) -> None:
    """Copies the old head's values into `head`: all below the logits, and columns by label.

    Does nothing where the heads differ below the logits, for then a column means nothing.
    """
    before = _weights(old_model.get_layer("heads").get_layer(head.name))
    after = _weights(head)
    below = after.keys() - {"logits/kernel", "logits/bias"}
    shared = [label for label in new if label in old]
    alike = below == before.keys() - {"logits/kernel", "logits/bias"} and all(
        before[name].shape == after[name].shape for name in below
    )
    width, new_width = (head["logits/kernel"].shape[0] for head in (before, after))
    if not shared or not alike or width != new_width:
        return
    for name in below:
        after[name].assign(before[name].value)
    sources, targets = [old.index(x) for x in shared], [new.index(x) for x in shared]
    for name in (before.keys() & after.keys()) - below:
        value = np.array(after[name].value)
        value[..., targets] = np.asarray(before[name].value)[..., sources]
        after[name].assign(value)


def _weights(head: keras.Model) -> dict[str, keras.Variable]:
    roles = variable_roles(head)
    return {name: v for name, v in structural_names(head).items() if roles[name] == "weight"}


def _head_spec(head: HeadSpec | str | None) -> HeadSpec:
    kinds = ("linear", "mlp", "cosine")
    if isinstance(head, str) and head not in kinds:
        raise ModelError(
            f"head={head!r} is no kind of head ({', '.join(kinds)}).{did_you_mean(head, kinds)}"
        )
    spec = HeadSpec(kind=cast(Any, head)) if isinstance(head, str) else head or HeadSpec()
    if issues := spec.issues():
        raise ModelError("; ".join(f"head.{path}: {message}" for path, message in issues))
    return replace(spec, hidden=tuple(spec.hidden))


def _checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise ModelError(f"labels is a list of names, got the string {labels!r}; use [{labels!r}].")
    names = tuple(labels)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ModelError(f"labels are strings, got {wrong[0]!r}; use str(...) of each.")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ModelError(f"the label {twice[0]!r} is given twice; each label needs its own name.")
    return names


def _numbered(labels: Sequence[str]) -> tuple[str, ...]:
    count: dict[str, int] = {}
    names = []
    for label in labels:
        count[label] = count.get(label, 0) + 1
        names.append(f"{label} ({count[label]})" if count[label] > 1 else label)
    return tuple(names)


def _listed(images: Images) -> Sequence[Any] | np.ndarray:
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray) and (images.ndim == 2 or _is_one_image(images.shape)):
        return [images]
    return images


def _is_one_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[-1] in (1, 3)
