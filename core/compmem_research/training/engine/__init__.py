"""Common parts of all stages: settings, trainer, checkpoints, log, and files for the next machine."""
