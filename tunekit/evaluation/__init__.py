"""How good the answers are: logits against labels."""
