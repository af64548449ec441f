"""Masked reconstruction: the run's own network learns from the images of the training pool, without labels."""
