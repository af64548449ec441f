"""The training step, the teacher's moving average, and the loop around them. No files of users are read here."""
