"""Parts of `tools.benchmark`: a module for each benchmark, the inputs and the report.

A benchmark imports only the packages it measures: `networks` runs where decoders and face detectors are missing.
"""

RESOLUTIONS = (256, 512)  # of the full-size models, in pixels
EAGER, COMPILED = "eager", "compiled"
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
# Width of the aligned crop in pixels of the frame, typical for a speaker shown from the chest up.
CROP_WIDTHS = {"720p": 300, "1080p": 450}
