"""What is asked of a model: one objective a file."""
