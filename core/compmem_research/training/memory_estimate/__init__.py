"""An estimate of the device memory of a stage."""
