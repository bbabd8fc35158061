"""A small network of each family, and one way to train an adapter on any of them.

Images go through `finetune`. There is no task of text yet: the trainer itself is driven there, with
the loss of a causal language model or of a classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.contract import families
from tests.unit.methods import texts
from tunekit import finetune
from tunekit.methods.spec import Method, default_train, rate_factor
from tunekit.models.hub import keras_hub
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.trainable import put, resolve_trainable
from tunekit.names import variable_roles
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import resolve_plan
from tunekit.training.checkpoints import Checkpoints
from tunekit.training.feed import Feed
from tunekit.training.spec import RuntimeSpec
from tunekit.training.trainer import Trainer

IMAGES, TEXTS = ("resnet", "vit"), ("bert", "llama")
ALL = (*IMAGES, *TEXTS)
EPOCHS, BATCH_SIZE, RATE, SEED = 2, 8, 1e-2, 3
_LENGTH = 6
_BERT = Path(__file__).parents[1] / "reference" / "peft" / "bert"


def fresh(family: str) -> Model:
    """A new model, always with the same values: a classifier, or Llama with its language head.

    Llama as KerasHub's object, BERT from a folder of Hugging Face's.
    """
    if family in families.FAMILIES:
        return families.FAMILIES[family]()
    if family == "bert":
        return load_model(_BERT, labels=families.LABELS)
    return load_model(keras_hub().models.LlamaCausalLM(texts.NETWORKS[family]()))


def examples(family: str, count: int = 4) -> Any:
    """What `Model.logits` takes: images, or sequences of token ids of several lengths."""
    if family not in TEXTS:
        return families.images(count, seed=9)[0]
    rng = np.random.default_rng(9)
    return [rng.integers(1, texts.VOCABULARY, 3 + i % 3) for i in range(count)]


def batch(family: str) -> Any:
    """A batch as the network takes it, for a LoRA of init "eva"."""
    if family not in TEXTS:
        return families.images(BATCH_SIZE)[0]
    columns = next(Texts().epoch(0))
    return {name: columns[name] for name in ("token_ids", "padding_mask")}


def values(model: Model) -> dict[str, np.ndarray]:
    """Copies of everything but seeds, by structural name; adapters included."""
    seeds = {name for name, role in variable_roles(model.keras).items() if role == "seed"}
    named = model.variables().items()
    return {n: np.array(v.value) for n, v in named if n not in seeds and not n.endswith("/seed")}


def train(
    model: Model,
    family: str,
    method: Method,
    *,
    select: Sequence[str] = (),
    epochs: int = EPOCHS,
    accumulate: int = 1,
    optimizer: str = "adamw",
    out: Path | None = None,
    resume: bool = False,
    cache: str | None = None,
) -> list[dict[str, Any]]:
    """Trains the method's adapter, put on the model first where it is not there; and the head.

    Without weight decay, so that what has no gradient stays. Returns what became of each phase.
    """
    if family in TEXTS:
        assert cache is None, "the cut is of images so far"
        return _train_texts(model, method, select, epochs, accumulate, optimizer, out, resume)
    result = finetune(
        model,
        families.images(),
        method=method,
        train=select or None,
        epochs=epochs,
        learning_rate=RATE,
        batch_size=BATCH_SIZE,
        accumulate=accumulate,
        optimizer=optimizer,
        weight_decay=0.0,
        validation=0.0,
        seed=SEED,
        out=out,
        resume=resume,
        cache=cache,
        progress="none",
    )
    return result.report["phases"]


def _train_texts(
    model: Model,
    method: Method,
    select: Sequence[str],
    epochs: int,
    accumulate: int,
    optimizer: str,
    out: Path | None,
    resume: bool,
) -> list[dict[str, Any]]:
    with model.restored_on_error():
        put(method, model, seed=SEED, inputs=[batch("bert")])
        forward, rows = model.forward(), Texts()
        phases = resolve_plan(
            [Phase(train=list(select) or None, epochs=epochs, learning_rate=RATE)],
            lambda selectors: resolve_trainable(selectors, model, method),
            default_train=default_train(method),
            steps_per_epoch=lambda _: rows.steps_per_epoch,
        )
        rates = {name: rate_factor(method, name) for name in phases[0].trainable}
        columns = next(rows.epoch(0)).items()
        feed = Feed(
            forward=forward,
            objective=Classify() if model.labels else NextToken(),
            columns={n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in columns},
            steps_per_epoch=rows.steps_per_epoch,
            open=lambda values: rows,
            accumulate=accumulate,
        )
        trainer = Trainer(
            forward=forward,
            phases=[replace(phases[0], multipliers=rates)],
            feeds=[feed],
            optimizer=OptimizerSpec(name=optimizer, weight_decay=0.0),
            runtime=RuntimeSpec(restore_best=False, out=str(out) if out else None, resume=resume),
            seed=SEED,
            checkpoints=Checkpoints(out, identity={}, keep=2) if out else None,
        )
        return trainer.fit().phases


@dataclass(frozen=True)
class Texts:
    """18 sequences of 6 tokens, some shorter and padded, whose label is that of the first token."""

    count: int = 18

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass; the last has rows that weigh nothing."""
        return -(-self.count // BATCH_SIZE)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of a pass."""
        rng = np.random.default_rng(0)
        ids = rng.integers(1, texts.VOCABULARY, (self.count, _LENGTH)).astype(np.int32)
        mask = (np.arange(_LENGTH) < rng.integers(3, _LENGTH + 1, (self.count, 1))).astype(np.int32)
        order = np.random.default_rng((SEED, epoch)).permutation(self.count)
        for step in range(start_step, self.steps_per_epoch):
            rows = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            weight = (np.arange(BATCH_SIZE) < len(rows)).astype(np.float32)
            rows = np.resize(rows, BATCH_SIZE)
            yield {
                "token_ids": ids[rows] * mask[rows],
                "padding_mask": mask[rows],
                "label": ids[rows, 0] % len(families.LABELS),
                "weight": weight,
            }


class Classify:
    """Cross-entropy of one label a text."""

    def augment_batch(self, key: jax.Array, batch: Any) -> Any:
        """Returns the batch as it is."""
        return batch

    def inputs(self, batch: Any) -> dict[str, jax.Array]:
        """Returns what the network takes."""
        return {name: batch[name] for name in ("token_ids", "padding_mask")}

    def loss(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss and weight."""
        return _cross_entropy(outputs, batch["label"], batch["weight"])


class NextToken(Classify):
    """Cross-entropy of each token given those before it; padding weighs nothing."""

    def loss(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss and weight."""
        weight = batch["padding_mask"][:, 1:] * batch["weight"][:, None]
        return _cross_entropy(outputs[:, :-1], batch["token_ids"][:, 1:], weight)


def _cross_entropy(logits: Any, labels: Any, weight: Any) -> tuple[jax.Array, jax.Array]:
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    return jnp.sum(losses * weight), jnp.sum(weight).astype(jnp.float32)
