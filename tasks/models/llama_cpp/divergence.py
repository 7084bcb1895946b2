"""How far one model's predictions are from another's, token by token.

The Kullback-Leibler divergence of the model from its reference, and how often their likeliest
tokens agree, are what a format is judged by. Perplexity is told and not judged by: a worse format
now and then has the better perplexity.
"""

import math
from typing import TYPE_CHECKING, Any

from tasks.core.errors import QuernError

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


class Divergence:
    """Gathers figures over batches of tokens. What is NaN stays NaN in every figure."""

    def __init__(self) -> None:
        self._divergences: list[Any] = []
        self._agreements: list[Any] = []
        self._reference_surprise: list[Any] = []
        self._surprise: list[Any] = []

    def add(
        self,
        reference: "NDArray[float32]",
        other: "NDArray[float32]",
        successors: list[int],
    ) -> None:
        """Add tokens' log-probabilities, both float32 [tokens, vocabulary], natural logarithms;
        `successors` are the ids of the tokens that followed in fact, [tokens]."""
        import numpy

        probability = numpy.exp(reference.astype(numpy.float64))
        with numpy.errstate(invalid="ignore"):
            terms = probability * (reference.astype(numpy.float64) - other)
        terms[probability == 0] = 0  # the limit; 0 · infinity would be NaN
        # Below zero it is but rounding; numpy's maximum keeps NaN.
        self._divergences.append(numpy.maximum(terms.sum(axis=-1), 0))
        agree = reference.argmax(axis=-1) == other.argmax(axis=-1)
        self._agreements.append(agree & ~numpy.isnan(other).any(axis=-1))
        rows = numpy.arange(len(successors))
        self._reference_surprise.append(-reference[rows, successors].astype(numpy.float64))
        self._surprise.append(-other[rows, successors].astype(numpy.float64))

    def figures(self) -> dict[str, Any]:
        """{"tokens", "kl": {"mean", "p95", "max"} in nats, "top1": share, "perplexity",
        "reference_perplexity"}."""
        import numpy

        divergences = numpy.concatenate(self._divergences)
        with numpy.errstate(over="ignore", invalid="ignore"):
            return {
                "tokens": len(divergences),
                "kl": {
                    "mean": float(divergences.mean()),
                    "p95": float(numpy.percentile(divergences, 95)),
                    "max": float(divergences.max()),
                },
                "top1": float(numpy.concatenate(self._agreements).mean()),
                "perplexity": float(numpy.exp(numpy.concatenate(self._surprise).mean())),
                "reference_perplexity": float(
                    numpy.exp(numpy.concatenate(self._reference_surprise).mean())
                ),
            }


def gate(report: dict[str, Any], max_kl: float, min_top1: float) -> None:
    """Refuse a format that is too far from the unquantized model.

    `report` is what `measure` wrote. Raises QuernError naming the format, the figure, the limit
    and the key that holds it.
    """
    what = f"{report['model']} {report['format']}"
    keys = f"models.{report['model']}.evaluate"
    divergence, agreement = number(report["kl"]["mean"]), number(report["top1"])
    # NaN compares as false with everything, and must not pass.
    if not divergence <= max_kl:
        raise QuernError(
            f"{what}: its mean KL divergence from the unquantized model is {divergence:.3g} nats, "
            f"{max_kl:g} is allowed; take a larger format, or raise {keys}.max_kl"
        )
    if not agreement >= min_top1:
        raise QuernError(
            f"{what}: its likeliest token is the unquantized model's for {agreement:.1%} of "
            f"tokens, {min_top1:.1%} are wanted; take a larger format, or lower {keys}.min_top1"
        )


def number(value: float | None) -> float:
    """A figure from a report, in which NaN and infinities are null."""
    return math.nan if value is None else value


def without_nan(value: Any) -> Any:
    """`value` with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
