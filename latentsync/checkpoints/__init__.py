"""Checkpoint files: which exist (`files`, `registry`), how they are read and written (`loading`), and which
differences from a model are tolerated (`differences`)."""
