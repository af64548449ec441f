"""Pictures, tables and pages of results. Nothing here computes a score or loads torch."""
