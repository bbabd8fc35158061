"""The operations of a step against closed forms, for what trains in a ViT and a Llama-type model.

A product of N rows with a matrix of P weights takes 2PN operations: one multiplication and one
addition for each pair. Backwards it is two such products: one gives the gradient of the rows, which
is needed where anything below trains; the other that of the matrix, needed where it trains itself.

Attention over T tokens of width D takes 2T²D for the scores and 2T²D for the weighted sum of a
text or image, twice that backwards.

Left out, for they are no products: norms, activations, softmax, the optimizer's few operations a
weight. Together they are below the 5 % that the counted figure may differ by.
"""

import pytest

from tunekit.planning.arithmetic import step_flops
from tunekit.planning.shapes import planned
from tunekit.recipe import Recipe

# ViT-S/16 on 224 pixels: 196 patches of 16 x 16 x 3, and a token for the class.
IMAGES, PATCHES, VIT_WIDTH, VIT_MLP, VIT_BLOCKS, PATCH = 4, 196, 384, 1536, 12, 16 * 16 * 3
VIT_TOKENS = PATCHES + 1
VIT_WEIGHTS = VIT_BLOCKS * (4 * VIT_WIDTH**2 + 2 * VIT_WIDTH * VIT_MLP)
VIT_ATTENTION = VIT_BLOCKS * IMAGES * 4 * VIT_TOKENS**2 * VIT_WIDTH
EMBEDDED = PATCH * VIT_WIDTH * IMAGES * PATCHES

# SmolLM2-135M: 9 heads of queries, 3 of keys and values, of 64 each; gated feed-forward.
TEXTS, TOKENS, WIDTH, MLP, BLOCKS, VOCABULARY, KEYS = 2, 128, 576, 1536, 30, 49152, 192
MATRICES = [(WIDTH, WIDTH)] * 2 + [(WIDTH, KEYS)] * 2 + [(WIDTH, MLP)] * 3
WEIGHTS = BLOCKS * sum(rows * columns for rows, columns in MATRICES)
ATTENTION = BLOCKS * TEXTS * 4 * TOKENS**2 * WIDTH
ROWS = TEXTS * TOKENS
RANK = 8
FACTORS = BLOCKS * RANK * sum(rows + columns for rows, columns in MATRICES)


def vit_head() -> float:
    """Only the forward pass: nothing below the head needs a gradient."""
    return 2 * VIT_WEIGHTS * IMAGES * VIT_TOKENS + VIT_ATTENTION + 2 * EMBEDDED


def vit_full() -> float:
    """Forward and twice that backwards; images need no gradient."""
    return 6 * VIT_WEIGHTS * IMAGES * VIT_TOKENS + 3 * VIT_ATTENTION + 4 * EMBEDDED


def llama_lora() -> float:
    """Forward, and the gradient of rows through the frozen matrices; all three of the factors.

    The head's logits are computed anew in the backward pass.
    """
    head = 6 * VOCABULARY * WIDTH * ROWS
    return 4 * WEIGHTS * ROWS + 6 * FACTORS * ROWS + 3 * ATTENTION + head


def llama_full() -> float:
    """All three of every matrix; the head, which is the embedding, has its forward twice."""
    head = 8 * VOCABULARY * WIDTH * ROWS
    return 6 * WEIGHTS * ROWS + 3 * ATTENTION + head


CASES = [
    ("vision/linear_probe", vit_head, ["backbone=vit_small_16", "batch.size=4", "cache=off"]),
    ("vision/full", vit_full, ["backbone=vit_small_16", "batch.size=4"]),
    ("llm/sft_lora", llama_lora, ["backbone=smollm2_135m", "batch.size=2"]),
    ("llm/sft_full", llama_full, ["backbone=smollm2_135m", "batch.size=2", "runtime.remat=none"]),
]


@pytest.mark.parametrize(("name", "closed_form", "overrides"), CASES, ids=lambda x: str(x)[:20])
def test_the_operations_of_a_step_are_those_of_a_closed_form(name, closed_form, overrides):
    run = planned(Recipe.load(name, overrides), examples=8, labels=2)
    assert step_flops(run, 0, "tpu") == pytest.approx(closed_form(), rel=0.05)


def test_blocks_computed_anew_are_one_more_forward_pass_but_for_their_last_product():
    overrides = ["backbone=vit_small_16", "batch.size=4", "runtime.remat=blocks"]
    run = planned(Recipe.load("vision/full", overrides), examples=8, labels=2)
    # What the last product of a block gives is kept: it goes into the next.
    weights = VIT_WEIGHTS - VIT_BLOCKS * VIT_WIDTH * VIT_MLP
    again = 2 * weights * IMAGES * VIT_TOKENS + VIT_ATTENTION
    assert step_flops(run, 0, "tpu") == pytest.approx(vit_full() + again, rel=0.05)
