"""The figures that formats are judged by, on distributions whose figures are known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tasks.core.errors import QuernError
from tasks.models.llama_cpp.divergence import Divergence, gate, without_nan
from tasks.models.llama_cpp.logits import log_softmax
from tasks.models.llama_cpp.report import report


def logs(*rows: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, np.float32))


def test_figures_on_two_tokens() -> None:
    divergence = Divergence()
    divergence.add(logs([0.5, 0.5, 0]), logs([0.25, 0.25, 0.5]), [0])
    divergence.add(logs([0.75, 0.25, 0]), logs([0.75, 0.25, 0]), [1])
    figures = divergence.figures()
    assert figures["tokens"] == 2
    assert figures["kl"]["max"] == pytest.approx(math.log(2))
    assert figures["kl"]["mean"] == pytest.approx(math.log(2) / 2)
    assert figures["top1"] == 0.5
    assert figures["perplexity"] == pytest.approx(4)
    assert figures["reference_perplexity"] == pytest.approx(math.sqrt(8))


def test_agreement_with_torch_on_random_logits() -> None:
    import torch

    generator = np.random.default_rng(0)
    p = log_softmax(generator.normal(size=(50, 1000)).astype(np.float32) * 4)
    q = log_softmax(generator.normal(size=(50, 1000)).astype(np.float32) * 4)
    divergence = Divergence()
    divergence.add(p, q, [0] * 50)
    wanted = torch.nn.functional.kl_div(
        torch.tensor(q), torch.tensor(p), reduction="batchmean", log_target=True
    )
    assert divergence.figures()["kl"]["mean"] == pytest.approx(float(wanted), rel=1e-5)
    assert np.allclose(np.exp(p).sum(-1), 1, atol=1e-5)


def test_nan_is_below_no_threshold() -> None:
    divergence = Divergence()
    divergence.add(logs([0.5, 0.5]), np.full((1, 2), np.nan, np.float32), [0])
    figures = divergence.figures()
    assert math.isnan(figures["kl"]["mean"]) and figures["top1"] == 0
    told = json.loads(json.dumps(without_nan(figures), allow_nan=False))
    with pytest.raises(QuernError, match="nan nats"):
        gate(told | {"model": "tiny", "format": "Q4_K_M"}, 1e9, 0)


def test_an_impossible_token_is_infinitely_far() -> None:
    divergence = Divergence()
    divergence.add(logs([0.5, 0.5]), logs([1.0, 0.0]), [0])
    assert divergence.figures()["kl"]["mean"] == math.inf


def told(format: str, size: int, kl: float | None, top1: float = 0.9) -> dict[str, object]:
    return {
        "model": "tiny",
        "format": format,
        "bytes": size,
        "bits_per_weight": 5.0,
        "kl": None if kl is None else {"mean": kl, "p95": kl, "max": kl},
        "top1": None if kl is None else top1,
        "perplexity": 9.5,
        "tokens": 512,
        "context": 256,
        "speed": {"prompt": 100.0, "generation": None if kl is None else 10.0},
        "torch": {"type": "float32", "kl": {"mean": 1e-6}, "top1": 1.0} if kl is None else None,
    }


def test_the_gate_names_format_figure_limit_and_key() -> None:
    gate(told("Q4_K_M", 1, 0.1), 0.1, 0.9)
    with pytest.raises(QuernError) as fault:
        gate(told("Q4_K_M", 1, 0.2), 0.1, 0.8)
    for part in ("tiny Q4_K_M", "0.2 nats", "0.1 is allowed", "models.tiny.evaluate.max_kl"):
        assert part in str(fault.value)
    with pytest.raises(QuernError, match=r"90\.0%.*95\.0%.*models\.tiny\.evaluate\.min_top1"):
        gate(told("Q4_K_M", 1, 0.1), 0.1, 0.95)


def test_the_report_has_all_formats_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    reports = []
    for entry in (
        told("F16", 1000, None),
        told("Q4_K_M", 300, 0.2),
        told("Q8_0", 530, 0.001),
    ):
        reports.append(str(tmp_path / f"{entry['format']}.json"))
        Path(reports[-1]).write_text(json.dumps(entry))
    made = []
    for turn in "ab":
        names = [str(tmp_path / f"{turn}.{kind}") for kind in ("json", "md", "png")]
        report(reports, {"tiny": {"max_kl": 0.1, "min_top1": 0.8}}, *names)
        made.append([Path(name).read_bytes() for name in names])
    assert made[0] == made[1]
    data, text, picture = made[0]
    formats = json.loads(data)["models"]["tiny"]
    assert [(f["format"], f["within_limits"]) for f in formats] == [
        ("F16", None),
        ("Q8_0", True),
        ("Q4_K_M", False),
    ]
    assert "| Q4_K_M | 300 B |" in text.decode() and "**no**" in text.decode()
    assert picture.startswith(b"\x89PNG")


def test_a_report_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(QuernError, match="not a report"):
        report([str(tmp_path / "a.json")], {}, "j", "m", "p")
