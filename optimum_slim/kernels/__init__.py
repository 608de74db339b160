"""The operator SlimLinear: its file format, the function that stands in for it, and the library that runs it fast."""
