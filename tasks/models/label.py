"""The label of a checkpoint, as people read it in /health: "Cycle 13 (Epoch 27, 62.60%)"."""

import math


def percent(val_acc: float) -> float:
    """Validation accuracy in percent; at most 1 is taken as a fraction, more as percent."""
    return val_acc * 100.0 if val_acc <= 1.0 else val_acc


def label(cycle: int | None, epoch: int | None, val_acc: float | None) -> str:
    """What is known of `cycle`, `epoch` and `val_acc` (a fraction or percent), "" if nothing is.

    `label(13, 27, 0.626)` is "Cycle 13 (Epoch 27, 62.60%)".
    """
    details = []
    if epoch is not None:
        details.append(f"Epoch {epoch}")
    if val_acc is not None and math.isfinite(val_acc):
        details.append(f"{percent(val_acc):.2f}%")
    inside = ", ".join(details)
    if cycle is None:
        return inside
    return f"Cycle {cycle} ({inside})" if inside else f"Cycle {cycle}"
