"""Training of all shipped weights: one readable file per stage."""
