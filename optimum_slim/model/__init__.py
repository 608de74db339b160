"""The model floor: where families keep what, how large it is, how it is cut, saved and loaded."""
