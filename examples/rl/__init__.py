"""An asynchronous RL post-training over Holdfast, in one small file per role: made to be copied from."""
