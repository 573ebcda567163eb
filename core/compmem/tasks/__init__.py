"""Questions with contexts and evidence. Training and benchmarks read the same ones."""
