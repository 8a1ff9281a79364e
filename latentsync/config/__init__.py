"""Config files: YAML in, validated and frozen sections out.

`schema` turns plain values into sections (pydantic dataclasses), `yaml_files` reads files that name a base and finds
the line of a mistake, `sections` is shared by both trainers, `unet` and `syncnet` the two kinds of training config,
`audio` the mel settings.
"""
