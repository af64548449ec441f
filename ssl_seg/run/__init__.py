"""One training from the request to its scores: plan, checks, records, resume. The step itself is in engine."""
