"""Parts of `tools.benchmark`: a module for each benchmark, the inputs and the report."""
