"""What every test needs: JAX behind Keras, and a mark by which a tier can be chosen."""

import os
from pathlib import Path

import pytest

# Before anything imports Keras, which reads it once.
os.environ.setdefault("KERAS_BACKEND", "jax")

TIERS = ("unit", "contract", "real")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test with its folder: ``pytest -m 'not real'``."""
    here = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(here).parts[0]
        if tier in TIERS:
            item.add_marker(tier)
