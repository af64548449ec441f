"""Whole images and volumes through a network, and their scores. Which cases, and where results go, is for results."""
