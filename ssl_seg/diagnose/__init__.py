"""The examination of a checkpoint, or of a folder of predictions: what was measured, the verdict, and why."""
