"""Bindings for inference servers: what `holdfast sync` says to them over HTTP. Nothing of an engine is imported."""
