"""Scores of predictions: metrics, trivial baselines, intervals, and how alike predictions are."""
