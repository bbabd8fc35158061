"""The model: a backbone, heads and adapters on it, one structural name per variable."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import keras
import numpy as np

from tunekit.data.feature_store import FeatureStore
from tunekit.errors import ModelError
from tunekit.models import adapted, merging
from tunekit.models.adapters import AdapterSet
from tunekit.models.assembly import assemble, keep_rows, named_backbone, weights_of
from tunekit.models.backbone import Backbone
from tunekit.models.depth import Group, depth_groups, with_adapters
from tunekit.models.forward import Forward
from tunekit.models.heads import build_head, checked_labels, head_spec
from tunekit.models.inference import Inference, renamed, slots
from tunekit.models.inputs import Inputs, batches
from tunekit.models.layer_tree import LayerTree, layer_tree
from tunekit.models.placement import beside, fetched
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.spec import HeadSpec
from tunekit.models.taps import Tap, taps
from tunekit.names import variable_roles

_HEAD = "label"
"""Name of the one head of a classifier; the graph takes any number."""


class Model:
    """A backbone with its preprocessing and, once the labels are known, a head; and adapters.

    Example:
        >>> model = load_model("efficientnet_lite0", labels=["cat", "dog"])
        >>> model.logits([np.zeros((300, 200, 3), "uint8")]).shape
        (1, 2)

    Attributes:
        backbone: the pretrained body, and where it came from.
        keras: functional keras.Model "model", without adapters: raw pixels 0..255, float32
            [B, H, W, 3], or token ids and padding mask [B, T], to logits; to features while there
            is no head. Replaced by `replace_head`.
        labels: names of the C labels; empty while there is no head.
        head_spec: how the head is built, or will be.
        multi_label: whether any number of labels may hold at once.
        adapters: what is put on the network, by name, and which of them act.
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
        self.adapters = AdapterSet()
        self._body = named_backbone(backbone)
        self._take_head(checked_labels(labels), head_spec(head), seed)

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """From an image of any size to the pixels that `keras` takes."""
        if self.backbone.preprocessing is None:
            raise ModelError(
                f"the model on '{self.backbone.source}' takes token ids, and was given images."
            )
        return self.backbone.preprocessing

    def variables(self) -> dict[str, keras.Variable]:
        """Returns every variable under its structural name.

        "backbone/...", "heads/label/...", and those of every adapter, "adapters/<name>/...".
        """
        variables = dict(self._inference.variables)
        for name, entry in self.adapters.entries.items():
            own = entry.adapter.variables.items()
            variables |= {f"adapters/{name}/{leaf}": variable for leaf, variable in own}
        return variables

    def weight_names(self) -> tuple[str, ...]:
        """Returns the names of the variables that can be trained: no statistics, no seeds.

        Those of adapters that act are among them. What `trainable` flags say has no part in it.
        """
        roles = dict(variable_roles(self.keras))
        for prefix, adapter in self.adapters.by_prefix.items():
            roles |= {f"{prefix}/{leaf}": role for leaf, role in adapter.roles.items()}
        return tuple(name for name, role in roles.items() if role == "weight")

    def norm_layers(self) -> frozenset[str]:
        """Returns the names of the normalisation layers, of Keras and of others."""
        layers = self._inference.layers.items()
        return frozenset(name for name, layer in layers if "Norm" in type(layer).__name__)

    def groups(self) -> tuple[Group, ...]:
        """Returns stem, blocks, top and heads: together every variable, none twice.

        What adapters add belongs to the group that it sits on.
        """
        if self._groups is None:
            self._groups = with_adapters(depth_groups(self), self.adapters.by_prefix)
        return self._groups

    def forward(self) -> Forward:
        """Returns the pass of the model with the adapters that act, by its depth groups."""
        groups = [group.variables for group in self.groups()]
        return Forward.of(self.keras, groups, self.adapters.by_prefix)

    def layers(self, trains: Collection[str] | None = None) -> LayerTree:
        """Returns the groups as a tree to print.

        Args:
            trains: structural names of what trains, to mark; `None` marks nothing.
        """
        return layer_tree(self.groups(), trains)

    def logits(
        self,
        items: Inputs,
        *,
        batch_size: int = 32,
        adapters: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """Returns float32 logits [N, C] of N examples, in inference mode; of tokens [N, T, V].

        Args:
            items: image paths, PIL images or arrays [H, W, 3] with pixels 0..255, of any sizes; an
                array [N, H, W, 3]; a single path or image. Or token ids, of one sequence or of
                several, which are padded at their ends.
            batch_size: examples at a time, at most; one program is compiled for each size.
            adapters: name of one adapter for each example, `None` for none, with its own head;
                left out, all have those that are active.

        Raises:
            ModelError: the model has no head, or adapters differ in shape.
            DataError: an image cannot be read.
        """
        if not self.labels and self.backbone.language_head is None:
            raise ModelError(
                f"the model on '{self.backbone.source}' has no head yet, so it gives no logits. "
                "Fine-tune it, or call replace_head(labels=[...])."
            )
        count, parts = batches(self.backbone, items, batch_size)
        if adapters is not None:
            return adapted.mixed_logits(self, count, parts, adapters)
        outputs = [self.apply(part) for part in parts]
        if not outputs:
            return np.zeros((0, len(self.labels)), np.float32)
        return np.concatenate(outputs)[:count]

    def hidden_states(
        self, token_ids: Inputs, *, layer: int | None = None, batch_size: int = 32
    ) -> np.ndarray:
        """Returns float32 hidden states [N, T, D] of N sequences, in inference mode.

        Where a sequence is shorter than T, those after its end mean nothing.

        Args:
            token_ids: of one sequence or of several, as for `logits`.
            layer: how many blocks they have gone through, from 1; `None` is what the backbone
                gives, a decoder's final normalisation with it.
            batch_size: sequences at a time, at most.

        Raises:
            ModelError: the model takes images, or has fewer blocks.
        """
        tap = self._tap_after(layer)
        count, parts = batches(self.backbone, token_ids, batch_size)
        acting = self.adapters.acting
        values = self._inference.values() | slots(acting)
        adapters = [adapter for adapter, _ in acting]
        outputs = [np.asarray(self._inference.at(tap, values, x, adapters)) for x in parts]
        if not outputs:
            return np.zeros((0, 0, self.backbone.dim), np.float32)
        return np.concatenate(outputs)[:count].astype(np.float32)

    def _tap_after(self, layer: int | None) -> Tap:
        """Where the hidden states after so many blocks can be read."""
        if self.backbone.takes != "tokens":
            raise ModelError(f"the model on '{self.backbone.source}' takes images, not token ids.")
        found = [tap for tap in taps(self.keras) if tap.name.startswith("backbone/")]
        if layer is None:
            return found[-1]
        there = [tap for tap in found if tap.group == f"blocks[{layer - 1}]"]
        if not there:
            blocks = sum(group.kind == "block" for group in self.groups())
            raise ModelError(f"layer: expected 1 to {blocks}, the number of blocks; got {layer}.")
        return there[-1]

    def apply(self, inputs: Any, values: Mapping[str, jax.Array] | None = None) -> np.ndarray:
        """Returns float32 outputs [B, ...] in inference mode, by a program compiled once a shape.

        Args:
            inputs: pixels [B, H, W, 3], 0..255, of the size that `preprocessing` gives; or token
                ids and padding mask [B, T] in a dict.
            values: of every variable by structural name; `None` takes the model's own.
        """
        acting = self.adapters.acting
        if values is None:
            values = self._inference.values() | slots(acting)
        else:
            values = renamed(values, [name for name, _ in self.adapters.active])
        inputs = beside(values, inputs)
        outputs = self._inference(values, inputs, [adapter for adapter, _ in acting])
        return fetched(outputs).astype(np.float32, copy=False)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Within the block an error, but not Ctrl-C, gives the head and adapters before back."""
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
        checked = checked_labels(labels)
        if not checked:
            raise ModelError("replace_head needs at least one label, got none.")
        spec = self.head_spec if head is None else head_spec(head)
        self._take_head(checked, spec, seed, keep_from=self if keep and self.labels else None)
        if multi_label is not None:
            self.multi_label = multi_label
        return self

    def take_language_head(self, head: keras.Layer | None) -> Model:
        """Puts a language head on a model without labels, or takes its own away; returns it."""
        self.backbone = replace(self.backbone, language_head=head)
        self._take_head((), self.head_spec, seed=0)
        return self

    def fresh_head_values(self, seed: int) -> dict[str, jax.Array]:
        """Returns what the head's variables would hold were it made anew, by structural name."""
        if not self.labels:
            return {}
        head = self._head(self.labels, self.head_spec, seed)
        return {f"heads/{_HEAD}/{name}": v.value for name, v in weights_of(head).items()}

    add_adapter = adapted.add_adapter
    remove_adapter = adapted.remove_adapter
    set_adapter = adapted.set_adapter
    adapters_disabled = adapted.adapters_disabled
    save_adapter = adapted.save_adapter
    load_adapter = adapted.load_adapter
    combine_adapters = adapted.combine_adapters
    merge = merging.merge
    unmerge = merging.unmerge
    merge_forecast = merging.forecast
    quantize = merging.quantize
    quantization = property(merging.quantization_of)

    def take_adapters(self, adapters: AdapterSet) -> Model:
        """Puts another set of adapters in the place of the present one; returns the model."""
        self.adapters, self._groups = adapters, None
        return self

    def _take_head(
        self, labels: tuple[str, ...], spec: HeadSpec, seed: int, keep_from: Model | None = None
    ) -> None:
        heads = {_HEAD: self._head(labels, spec, seed)} if labels else {}
        if keep_from is not None:
            keep_rows(keep_from.keras, keep_from.labels, heads[_HEAD], labels)
        graph = assemble(self._body, self.backbone, heads)
        # Nothing below can fail: the model changes whole or not at all.
        self.keras, self.labels, self.head_spec = graph, labels, spec
        self._inference = Inference(graph)
        self._groups = None

    def _head(self, labels: tuple[str, ...], spec: HeadSpec, seed: int) -> keras.Model:
        if spec.pooling == "auto" and self.backbone.sentence_pooling is not None:
            spec = replace(spec, pooling=self.backbone.sentence_pooling)
        return build_head(
            spec,
            features=self.backbone.features,
            dim=self.backbone.dim,
            labels=labels,
            name=_HEAD,
            seed=seed,
            prefix_tokens=self.backbone.prefix_tokens,
        )
