"""Metrics of lip-sync results: image similarity, audio-visual sync, landmarks, identity."""
