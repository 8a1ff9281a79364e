"""Third-party networks with published weights: they evaluate, supervise or restore, and are never trained here.

Each module defines one architecture with the parameter names of its published checkpoint. Weights are downloaded only
for the option that needs them, see `latentsync.checkpoints.registry`. Dimension letters as in `latentsync.models`.
"""
