"""The command `compmem`."""
