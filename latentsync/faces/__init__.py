"""Face detection, tracking, smoothing, alignment, masks and paste-back."""
