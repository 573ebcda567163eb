"""Reinforcement learning: rollouts of the loop for many questions at once, rewards, and the loss."""
