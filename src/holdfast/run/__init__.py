"""Processes of a job: the launcher, and a store run by itself."""
