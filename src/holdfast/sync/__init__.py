"""`holdfast sync`: the process beside inference servers that brings channels' versions into them."""
