"""The protocols as pure state machines: no clock, no randomness, no I/O, no threads.

A machine is a frozen state and `step(state, event) -> (state, effects)`. Effects are ordered: a shell carries
out each one, durably, before the next. Time, randomness and ids come in as values. The model checker, the
crash tests and production run this same code.
"""
