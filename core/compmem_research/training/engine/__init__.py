"""What runs any stage: settings, trainer, checkpoints, log, and what is carried to the next machine."""
