"""Data processing: from a folder of videos to clips of aligned faces with sound, fit for training."""
