"""What reinforcement learns from: the loop run for many questions at once, what each run was worth, and the loss."""
