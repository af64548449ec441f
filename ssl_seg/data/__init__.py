"""Finding, reading, splitting and sampling cases. Everything that knows about files or batches."""
