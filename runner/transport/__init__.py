"""Connections to the machines that train: ``base`` says what one can do, ``ssh`` does it."""
