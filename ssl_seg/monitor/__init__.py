"""Watching the networks: what they put out (signals) and what that means (verdicts)."""
