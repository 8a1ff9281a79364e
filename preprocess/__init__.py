"""Data processing: turns a folder of videos into clips of aligned faces with audio for training."""
