"""The parts of tools/evaluate_embedded.py."""
