"""The RL job of `examples.rl` on one machine, broken on purpose while it trains."""
