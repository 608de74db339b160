"""The one place where weights are trained: a pass of transformers.Trainer, and the losses that meet in it."""
