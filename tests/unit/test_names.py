"""Structural names: unique, complete, and the same in every instance and process."""

from __future__ import annotations

import subprocess
import sys

import keras
import pytest

from tunekit.names import layer_names, structural_names, variable_roles


def twins() -> keras.Model:
    """Layers with automatic names, a repeated explicit name, dropout and a shared layer."""
    shared = keras.layers.Dense(4)
    x = inputs = keras.Input((4,))
    for _ in range(2):
        block = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dropout(0.5)]
        )
        x = shared(block(x))
    return keras.Model(inputs, x)


def test_names_are_unique_and_complete():
    model = twins()
    names = structural_names(model)
    assert len(names) == len(model.variables)
    assert {id(v) for v in names.values()} == {id(v) for v in model.variables}


def test_names_are_the_same_in_a_second_instance():
    assert list(structural_names(twins())) == list(structural_names(twins()))
    assert list(layer_names(twins())) == list(layer_names(twins()))


def test_names_are_the_same_in_another_process():
    script = (
        "import keras; [keras.layers.Dense(1) for _ in range(7)];"
        "from tests.unit.test_names import twins; from tunekit.names import structural_names;"
        "print('\\n'.join(structural_names(twins())))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == list(structural_names(twins()))


def test_a_layer_made_of_layers_numbers_repeats_within_its_parent():
    names = list(structural_names(twins()))
    assert names == [
        "sequential/dense/kernel",
        "sequential/dense/bias",
        "sequential/dropout/seed_generator_state",
        "dense/kernel",
        "dense/bias",
        "sequential_1/dense/kernel",
        "sequential_1/dense/bias",
        "sequential_1/dropout/seed_generator_state",
    ]


@pytest.mark.parametrize("trainable", [True, False])
def test_roles_do_not_follow_trainable_flags(trainable):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(name="norm"), keras.layers.Dropout(0.5)]
    )
    model.trainable = trainable
    assert variable_roles(model) == {
        "norm/gamma": "weight",
        "norm/beta": "weight",
        "norm/moving_mean": "statistic",
        "norm/moving_variance": "statistic",
        "dropout/seed_generator_state": "seed",
    }
