"""What a supervised stage learns from: rows, the mixture they are drawn from, and the questions behind them."""
