"""Holdfast inside other people's training loops. Nothing here is imported by `import holdfast`."""
