import latentsync  # noqa: F401  # sets the thread budget, before PyTorch is imported
