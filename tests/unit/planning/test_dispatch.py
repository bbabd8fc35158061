"""Traces as another machine would make them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from absl import logging
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from keras_hub.src.utils.keras_utils import (
    get_gpu_names,
    gpu_supports_fused_attention_op,
    running_on_gpu,
    running_on_tpu,
)

from tunekit.planning.cards import target_config
from tunekit.planning.chips import CHIPS
from tunekit.planning.dispatch import dispatched
from tunekit.planning.hardware import target
from tunekit.platforms import traced_platform


@pytest.mark.parametrize(("name", "kind"), [("v5e-8", "tpu"), ("h100-1", "gpu"), ("t4-1", "gpu")])
def test_in_the_block_keras_and_jax_see_the_target(name: str, kind: str) -> None:
    with dispatched(target(name).chip):
        assert traced_platform() == kind and jax.default_backend() == kind
        assert (running_on_tpu(), running_on_gpu()) == (kind == "tpu", kind == "gpu")
        assert jax.devices()[0].platform == kind
    assert traced_platform() == jax.default_backend() == jax.devices()[0].platform


def test_a_card_has_its_own_name_and_capability() -> None:
    with dispatched(target("t4-1").chip):
        assert get_gpu_names() == ["Tesla T4"] and not gpu_supports_fused_attention_op()
        assert cudnn.check_compute_capability("7.5")
        assert not cudnn.check_compute_capability("8.0")
    with dispatched(target("b200-1").chip):
        assert cudnn.is_cuda_compute_capability_equal("10.0")
        assert cudnn.check_compute_capability("9.0") and cudnn.check_cudnn_version() >= 90000


def test_cudnn_can_be_said_to_be_missing() -> None:
    with dispatched(target("h100-1").chip, kernels=False):
        with pytest.raises(RuntimeError, match="cuDNN is not detected"):
            cudnn.check_cudnn_version()


def test_everything_is_as_before_after_an_error() -> None:
    before = (jax.devices, jax.default_backend, cudnn.check_cudnn_version, logging.get_verbosity())
    with pytest.raises(ZeroDivisionError), dispatched(target("h100-1").chip):
        raise ZeroDivisionError
    after = (jax.devices, jax.default_backend, cudnn.check_cudnn_version, logging.get_verbosity())
    assert after == before
    assert jnp.ones(2).sum() == 2


@pytest.mark.parametrize("chip", [c for c in CHIPS if c.kind == "gpu"], ids=lambda c: c.name)
def test_every_card_has_a_configuration_for_its_compiler(chip) -> None:
    text = target_config(chip)
    major, minor = chip.capability
    assert f"major: {major} minor: {minor} feature_extension" in text
    assert f"device_memory_size: {chip.memory_bytes}\n" in text
    assert text.count("{") == text.count("}") == 3
