"""The training of the first embedded model; `rebuild.sh` runs all of it, docs/embedded_model.md explains it."""

from recipes.embedded.first_generation.recipe import Recipe

__all__ = ["Recipe"]
