"""Recipes: a channel under other trainers; each is described in docs/recipes."""
