"""Parts of `tools.benchmark`: one module a section, its inputs and the report."""
