# core
"""What every room stands on, and what knows of no message: errors, arrays, files, hashing, the decorator of compiled
loops."""
