"""Several trainings in one directory: the rungs of a ladder of label fractions, the folds of a cross-validation."""
