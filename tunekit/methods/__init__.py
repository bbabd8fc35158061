"""What is attached to a model, and what of it may train."""
