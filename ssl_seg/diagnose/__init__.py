"""Examine a checkpoint, predictions, a loss or batches: measurements, verdict, causes. Drawing is report's."""
