# core
"""`millrace up`: the loop on your own events, from one command; and `millrace doctor`, which says what to mend."""
