"""Faces: detectors behind one interface, tracking and smoothing, alignment, masks, paste-back."""
