"""The tests mirror the package. Their models are tiny, random and made on the spot (tiny.py)."""
