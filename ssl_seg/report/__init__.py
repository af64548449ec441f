"""Pictures of results. Nothing here imports torch."""
