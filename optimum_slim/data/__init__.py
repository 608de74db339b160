"""Texts, and what a model makes of them."""
