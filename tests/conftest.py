"""What every test needs: JAX behind Keras, on the CPU unless told otherwise."""

import os

# Before anything imports Keras, which reads it once.
os.environ.setdefault("KERAS_BACKEND", "jax")
