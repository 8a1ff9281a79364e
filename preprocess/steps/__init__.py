"""The steps of data processing, one module each: pure functions of one source, segment or clip."""
