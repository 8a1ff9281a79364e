"""`python -m latentsync` is the `latentsync` command."""

from latentsync.cli import program

program()
