"""Membership's shells: key-value stores, a node's thread, the plug-in for torchrun, the guardian of its workers."""
