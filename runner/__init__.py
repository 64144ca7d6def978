"""Runs the submissions of a RAMP event: on this machine, in conda, on EC2 or on Dask."""
