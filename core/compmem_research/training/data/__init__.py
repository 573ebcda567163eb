"""Data of the supervised stages: rows, mixtures of them, and the questions behind them."""
