"""The parts of a transaction: its runs, its hooks, its record, its turn, and the whole of them."""
