"""`python -m latentsync` is the `latentsync` command."""

import sys

from latentsync.cli import main

sys.exit(main())
