"""Attention by type of token: one statistic, computed beside the model's own kernel."""
