"""Stands in for ramp-workflow where a test is about dispatching and not about training: it imports at once."""
