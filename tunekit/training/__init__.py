"""The training loop: state, step, optimizers, checkpoints."""
