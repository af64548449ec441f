"""Watch the networks: what they put out (signals) and what that means (verdicts). Nothing here changes a training."""
