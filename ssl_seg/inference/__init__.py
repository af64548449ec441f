"""Whole images and volumes through a network, and their scores."""
