"""How much device memory a stage takes, told before it is run."""
