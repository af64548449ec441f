"""The training step, the teacher's moving average, policies and interventions. The loop around them is run's."""
