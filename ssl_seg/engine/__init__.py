"""The training step, the teacher's moving average, and the loop around them."""
