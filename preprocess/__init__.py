"""Data processing: turns a folder of videos into clips of aligned faces with audio for training."""

import latentsync  # noqa: F401  # sets the thread budget, before PyTorch is imported
