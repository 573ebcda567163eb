"""What the gate on the backbone learns from, and what its logits are worth as probabilities."""
