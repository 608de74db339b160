"""The slim model learns from the original: losses for `train`."""
