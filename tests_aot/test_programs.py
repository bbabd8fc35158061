"""Recipes compiled for machines that are not here, each in a process of its own.

A head, LoRA and full fine-tuning, of a ResNet, a ViT, a BERT-like and a Llama-type network, on a
slice of TPU v5e, one of v6e and four H100. Run by ``make test-aot``, which has the compilers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tunekit.planning.chips import GIB
from tunekit.planning.compiling import CompiledPhase, compile_phases
from tunekit.planning.hardware import target
from tunekit.recipe import Recipe

Record = Callable[[str, object], None]

BFLOAT16 = "backbone.dtype=mixed_bfloat16"
PROGRAMS = {
    "ResNet-18 head": ("vision/linear_probe", ["backbone=resnet_18", "cache=off"]),
    "ResNet-18 LoRA": ("vision/adapters/lora", ["backbone=resnet_18"]),
    "ResNet-18 full": ("vision/full", ["backbone=resnet_18"]),
    "ViT-S/16 head": ("vision/linear_probe", ["backbone=vit_small_16", BFLOAT16, "cache=off"]),
    "ViT-S/16 LoRA": ("vision/adapters/lora", ["backbone=vit_small_16", BFLOAT16]),
    "ViT-S/16 full": ("vision/full", ["backbone=vit_small_16", BFLOAT16]),
    "MiniLM head": ("text/classify_frozen", ["backbone=minilm_l6"]),
    "MiniLM LoRA": ("text/classify_lora", ["backbone=minilm_l6"]),
    "MiniLM full": ("text/classify_full", ["backbone=minilm_l6"]),
    "SmolLM2 head": ("text/classify_frozen", ["backbone=smollm2_135m"]),
    "SmolLM2 LoRA": ("llm/sft_lora", ["backbone=smollm2_135m", BFLOAT16, "runtime.mesh=fsdp"]),
    "SmolLM2 full": ("llm/sft_full", ["backbone=smollm2_135m", BFLOAT16, "runtime.mesh=fsdp"]),
}
BLOCKS = {"ViT-S/16": 6, "SmolLM2": 6}
"""Of the networks that are compiled with fewer blocks than they have."""
MACHINES = ("v5e-8", "v6e-4", "h100-4")


def compiled(program: str, machine: str, record: Record, *, examples: int = 6400) -> CompiledPhase:
    """The last phase of a program, compiled for a machine."""
    name, overrides = PROGRAMS[program]
    phase = compile_phases(
        Recipe.load(name, overrides),
        target(machine),
        examples=examples,
        labels=None if name.startswith("llm") else 10,
        blocks=BLOCKS.get(program.rpartition(" ")[0]),
        timeout_seconds=600,
    )[-1]
    tell(program, machine, phase, record)
    return phase


def tell(program: str, machine: str, phase: CompiledPhase, record: Record) -> None:
    messages = sum(each["bytes"] for each in phase.collectives)
    row = (
        program,
        machine,
        f"{phase.peak_bytes / GIB:.3f}",
        f"{phase.flops / 1e9:.1f}",
        f"{messages / 1e6:.1f}",
        f"{phase.compile_seconds:.1f}",
    )
    record("program", row)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_compiles_for_a_machine(
    program: str, machine: str, record_property: Record
) -> None:
    phase = compiled(program, machine, record_property)
    state = sum(phase.state.values())
    assert phase.refusal is None
    assert 0 < state <= phase.argument_bytes
    assert state < phase.peak_bytes < target(machine).chip.usable_bytes
    assert phase.flops > 1e8
    # All devices share a batch: the gradients of what trains are added up. In bfloat16 they take
    # half the bytes of the float32 that trains; of a table of positions, no text reaches all rows.
    assert sum(each["bytes"] for each in phase.collectives) >= 0.4 * phase.state["trained"]
    has_flash = any("cuDNN" in note for note in phase.notes)
    # It needs bfloat16, and in training an even number of tokens, which a ViT does not have.
    needs = program in ("SmolLM2 LoRA", "SmolLM2 full", "ViT-S/16 head")
    assert has_flash == (machine == "h100-4" and needs)


def llama(*overrides: str, tokens: int = 1024) -> Recipe:
    return Recipe.load(
        "llm/sft_lora",
        [
            "backbone=llama3_8b",
            "backbone.dtype=bfloat16",
            "method.rank=16",
            f"batch.max_length={tokens}",
            "runtime.mesh=fsdp",
            *overrides,
        ],
    )


def test_an_8_billion_parameter_llama_needs_what_two_of_its_depths_say(
    record_property: Record,
) -> None:
    few, more = (
        compile_phases(llama(), target("v5e-8"), examples=6400, blocks=blocks)[0]
        for blocks in (2, 4)
    )
    tell("Llama-3-8B LoRA, 4 of 32 blocks", "v5e-8", more, record_property)
    whole = few.peak_bytes + (more.peak_bytes - few.peak_bytes) / 2 * 30
    # Of a step with all 32 compiled, frozen weights not donated: 11.1 GiB a device.
    assert whole / GIB == pytest.approx(11.1, rel=0.15)


def test_a_program_too_big_for_a_chip_is_refused_and_the_refusal_is_read(
    record_property: Record,
) -> None:
    refused = compile_phases(
        llama("batch.size=32", "runtime.mesh=auto"), target("v5e-1"), examples=6400, blocks=4
    )[0]
    tell("Llama-3-8B LoRA, 4 of 32 blocks", "v5e-1", refused, record_property)
    room = target("v5e-1").chip.usable_bytes
    assert refused.peak_bytes > room and sum(refused.state.values()) < refused.peak_bytes
    assert refused.refusal is not None
    needed = f"{refused.peak_bytes / GIB:.2f} GiB of each device's memory"
    assert needed in refused.refusal and "15.75 GiB of a TPU v5e" in refused.refusal
