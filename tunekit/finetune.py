"""The call: every keyword a field of the recipe, which is then run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras

from tunekit.asked import in_memory
from tunekit.data.spec import AugmentSpec, CacheSpec, MixedSpec
from tunekit.methods.spec import Method
from tunekit.models.model import Model
from tunekit.models.spec import Dtype, HeadSpec, Quantization
from tunekit.plans.builders import Builder
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase, Schedule
from tunekit.recipe import Recipe
from tunekit.result import Result
from tunekit.run import run
from tunekit.tasks.spec import TaskSpec
from tunekit.training.spec import MeshSpec, MeshWord


def finetune(
    model: str | Path | Model | keras.Model,
    data: Any,
    *,
    task: str | TaskSpec | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
    template: str | None = None,
    mix: Sequence[MixedSpec] | None = None,
    labels: Sequence[str] | None = None,
    method: str | Method = "full",
    head: str | HeadSpec | None = None,
    train: str | Sequence[str] | None = None,
    plan: Phase | Builder | Sequence[Phase | Builder] | None = None,
    epochs: float | None = None,
    learning_rate: float | slice | None = None,
    schedule: Schedule | None = None,
    warmup: str | None = None,
    early_stopping: int | None = None,
    batch_size: int | None = None,
    accumulate: int | Literal["auto"] | None = None,
    max_length: int | None = None,
    packing: bool = False,
    optimizer: str | OptimizerSpec | None = None,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
    augment: str | AugmentSpec | None = None,
    label_smoothing: float | None = None,
    class_weights: str | Sequence[float] | None = None,
    balanced: bool = False,
    image_size: int | tuple[int, int] | None = None,
    blocks: int | None = None,
    precision: Dtype = "float32",
    quantize: Quantization | None = None,
    remat: Literal["none", "blocks", "full", "dots", "offload"] = "none",
    mesh: MeshWord | MeshSpec = "auto",
    validation: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    cache: str | CacheSpec | None = None,
    progress: Literal["auto", "rich", "plain", "none"] = "auto",
) -> Result:
    """Returns a model tuned on `data`, with its history and metrics.

    Every keyword is a field of the recipe, whose classes say what their defaults mean; `None` is
    the field's default. A `Model` given as an object is trained itself and gets a head for the
    data's labels, rows of labels that it knows kept; a `keras.Model` is copied. An error leaves
    a `Model` as it was; Ctrl-C leaves it as the last whole step made it.

    Args:
        model: bundled name, preset, folder, GGUF file, keras.applications name, `Model` or
            `keras.Model`.
        data: a path, (images or texts, labels), a list of rows as dicts, or a dict of those by
            split name.
        task: what is asked of the model, "text_classification", "sft"…, or a whole spec; by
            default what the data say.
        text: column of the text, the words or the question; found by its name where not given.
        pair: column of the second text of a pair.
        label: column of the label.
        prompt: column of the prompt.
        response: column of the response to it.
        template: format of a prompt, such as "### Instruction: {prompt} ### Response: ", in place
            of the tokenizer's chat template.
        mix: further examples drawn among these, such as MixedSpec("general.txt", weight=0.2).
        labels: order of the label names.
        method: what is put on the network and what may train: "full", "head", "lora", "dora",
            "ia3"… or a spec such as LoRA(rank=8, targets="attention").
        head: kind of head, or a whole `HeadSpec`.
        train: selectors of what trains: "head", "all", "last 2", patterns, lists of them.
        plan: phases, or builders of them from `tunekit.plans`, in place of `train` to
            `early_stopping`.
        epochs: passes over the training data.
        learning_rate: highest rate, by default lower where the backbone trains; or slice(lo, hi),
            rising geometrically from the stem's to the head's.
        schedule: course of the rate after the warmup.
        warmup: "5%", "1 epoch" or "100 steps".
        early_stopping: evaluations without a better one that end the training.
        batch_size: examples per optimizer step.
        accumulate: micro-batches that one step is computed in; "auto": the fewest that fit.
        max_length: longest text in tokens, cut beyond.
        packing: whether several texts fill one row of `max_length` tokens.
        optimizer: name, or a whole `OptimizerSpec`.
        weight_decay: decoupled decay of kernels.
        clip_norm: largest global norm of the gradients.
        ema: decay of the moving average of the weights.
        augment: "light", or an `AugmentSpec`.
        label_smoothing: share of each target spread over all classes.
        class_weights: "balanced", or one weight a label.
        balanced: draws every class equally often.
        image_size: side, or (height, width), in pixels.
        blocks: of the backbone to keep, from the first; all by default.
        precision: of weights and computations.
        quantize: packs the frozen kernels: "int8", "int4" or "nf4".
        remat: what the backward pass computes anew to save memory: "blocks", "full", or on
            accelerators "dots" or "offload".
        mesh: how several devices share the work: "data", "fsdp", "tensor", a `MeshSpec` of numbers
            of devices, or "one", the first device alone.
        validation: a path, (images, labels), or the fraction of the training data set aside.
        seed: of everything random.
        out: folder for checkpoints and the result.
        resume: goes on from the last checkpoint in `out`.
        cache: where the outputs of the frozen part are kept, computed once: "auto", "ram", "disk",
            "off", or a `CacheSpec`.
        progress: a bar, plain lines or nothing.

    Raises:
        RecipeError: every mistake in the keywords, at once.
        DataError: everything that is wrong with the data, at once.
        ModelError: the model cannot be loaded.

    Example:
        >>> result = finetune("efficientnet_lite0", "photos/", method="head", epochs=3)
        >>> result.metrics["accuracy"]
    """
    recipe = Recipe.from_keywords(**locals())
    named = isinstance(model, (str, Path))
    return run(
        recipe,
        model=None if named else model,
        data=in_memory(data, validation),
    )
