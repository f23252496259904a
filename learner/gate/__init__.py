# core
"""What may be learnt and served: checks of batches, held-out pages, promotion, quarantine."""
