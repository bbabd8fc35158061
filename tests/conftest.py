"""What every test needs: JAX behind Keras, on the CPU unless told otherwise."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunekit  # noqa: F401  before anything imports Keras or starts JAX, which it prepares

# Most of a test's time is XLA's, and many tests compile the same program: each once, also in the
# processes that tests start. The cache is keyed by the program, so it is never stale.
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(autouse=True, scope="module")
def _programs_are_let_go() -> Iterator[None]:
    """A process that runs thousands of tests would hold every program that it has ever compiled."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


@pytest.fixture(autouse=True, scope="module")
def _programs_are_compiled_soon(request: pytest.FixtureRequest) -> Iterator[None]:
    """A program that runs a few times on small arrays need not be optimised by XLA.

    That takes a third off the time of such tests, and of the processes that they start. Tests of
    real weights have optimised programs, unless their module says ``OPTIMISED = False``.
    """
    if getattr(request.module, "OPTIMISED", "real" in request.path.parts):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        import jax

        name = "jax_disable_most_optimizations"
        before = jax.config.values[name]
        jax.config.update(name, True)
        yield
        jax.config.update(name, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of real weights first: their files are the longest, and processes share by files."""
    items.sort(key=lambda item: "real" not in item.path.parts)
