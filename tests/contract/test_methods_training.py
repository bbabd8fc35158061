"""What holds of training for every method: micro-batches, a cached prefix, resuming, errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.contract.methods_cases import (
    CASES,
    METHODS,
    assert_equal,
    every,
)
from tests.contract.methods_families import (
    ALL,
    IMAGES,
    TEXTS,
    Texts,
    examples,
    fresh,
    train,
    values,
)
from tunekit.data.pipeline import Batches
from tunekit.training.trainer import Trainer

# KerasHub's own, of masks that its attention drops.
pytestmark = pytest.mark.filterwarnings("ignore:.*Layer 'attn':UserWarning")


@every([("lora", family) for family in ("resnet", "dinov2", "llama")])
def test_micro_batches_equal_one_batch(method, family):
    """On networks without dropout, whose masks rightly depend on the micro-batch."""
    results = []
    for accumulate in (1, 4):
        model = fresh(family)
        train(model, family, METHODS[method], epochs=1, accumulate=accumulate, optimizer="sgd")
        results.append(values(model))
    for name in results[0]:
        # The gradients are summed in another order.
        np.testing.assert_allclose(*(r[name] for r in results), rtol=1e-4, atol=1e-5, err_msg=name)


@every([(m, f) for m in ("lora", "houlsby") for f in IMAGES])
def test_from_the_cached_outputs_of_the_frozen_blocks_training_is_the_same(method, family):
    results, spec = [], replace(METHODS[method], within="last 1")
    for cache in ("off", "ram"):
        model = fresh(family)
        phases = train(model, family, spec, cache=cache)
        assert (phases[0]["start"] is not None) == (cache == "ram")
        results.append(values(model))
    for name in results[0]:
        # XLA fuses the two programs differently.
        np.testing.assert_allclose(results[0][name], results[1][name], atol=1e-5, err_msg=name)


@every([("biased", family) for family in ALL])
def test_resuming_equals_the_uninterrupted_run(method, family, tmp_path, monkeypatch):
    """Of a LoRA with dropout, whose masks must go on where they were."""
    whole, interrupted, resumed = fresh(family), fresh(family), fresh(family)
    train(whole, family, METHODS[method], out=tmp_path / "whole")
    end_pass = Trainer.end_pass

    def killed(self, state, epoch, *rest):
        end_pass(self, state, epoch, *rest)
        raise OSError("killed")

    monkeypatch.setattr(Trainer, "end_pass", killed)
    with pytest.raises(OSError, match="killed"):
        train(interrupted, family, METHODS[method], out=tmp_path / "killed")
    monkeypatch.undo()
    train(resumed, family, METHODS[method], out=tmp_path / "killed", resume=True)
    assert_equal(values(whole), values(resumed))


@every([(m, f) for m, f in CASES if m in ("lora", "dora", "prompt", "visual_prompt", "norm")])
def test_an_error_in_training_leaves_the_model_as_it_was(method, family, monkeypatch):
    model = fresh(family)
    before, labels = values(model), model.labels
    batches = Texts if family in TEXTS else Batches
    whole = batches.epoch

    def breaks(self, epoch, start_step=0):
        for number, rows in enumerate(whole(self, epoch, start_step)):
            if number == 1:
                raise OSError("the disk is gone")
            yield rows

    monkeypatch.setattr(batches, "epoch", breaks)
    with pytest.raises(OSError, match="the disk is gone"):
        train(model, family, METHODS[method])
    assert (model.labels, dict(model.adapters.entries)) == (labels, {})
    assert_equal(before, values(model))
    assert np.isfinite(model.logits(examples(family))).all()
