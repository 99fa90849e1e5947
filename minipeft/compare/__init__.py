"""Runs and comparisons of fine-tuning methods."""
