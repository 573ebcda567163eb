"""Training examples of the gate on the backbone, and calibration of its logits."""
