"""Whether two models have the same state."""

from __future__ import annotations

from learner.ranker.snapshot_slices import Part


def differs(one: Part, other: Part) -> str:
    """Empty where two plain pairs are equal to the bit, else a name."""
    (image, training), (image_b, training_b) = one, other
    found = image.same_bits(image_b)
    for name in training.keys() | training_b.keys():
        a, b = training.get(name), training_b.get(name)
        if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            found = found or name
    return found
