"""Many trainings compared: which cells there are, where they run, and what their scores say."""
