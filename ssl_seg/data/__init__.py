"""Find, read, audit, split and sample cases. All that knows image files; nothing that knows networks."""
