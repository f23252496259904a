"""The crash suite: one list of faults, one loop that is struck, one balance of its books, one table."""
