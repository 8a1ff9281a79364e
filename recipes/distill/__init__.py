"""Distillation of a UNet to 1 to 4 evaluations without guidance; README.md explains it."""

from recipes.distill.recipe import Recipe

__all__ = ["Recipe"]
