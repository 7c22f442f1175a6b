"""Laws and a budget in, a run with its predicted loss out; and what came of it."""
