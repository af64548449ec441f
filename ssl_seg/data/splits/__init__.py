"""Splits: how they are made, kept in files, and checked before anything is trained on them."""
