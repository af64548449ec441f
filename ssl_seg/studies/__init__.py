"""Many trainings that belong together: label ladder, cross-validation, ablation. One training is run's."""
