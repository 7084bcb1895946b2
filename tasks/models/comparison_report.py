"""A comparison of two releases for people: a verdict, a table, Markdown."""

from typing import Any

WHO = ("candidate", "stable")
Comparison = dict[str, Any]  # as tasks/comparison/compare.py makes it
ON_SCREEN = 6  # classes that changed


def verdict(told: Comparison) -> str:
    """`the candidate is more accurate by 1.2 points (95 % -0.3 … 2.7, McNemar p 0.12), 3.1 ms p50
    against 4.0 ms; may be promoted: doit promote dogs`."""
    difference = told["difference"]
    how = "as accurate"
    if difference:
        how = (
            f"{'more' if difference > 0 else 'less'} accurate by {abs(100 * difference):.1f} points"
        )
    speed = " against ".join(f"{told['latency_ms'][who]['p50']:.3g} ms" for who in WHO)
    speed = speed.replace(" ms against", " ms p50 against")
    margin = f"{100 * told['margin']:g} points"
    if not told["stands"]:
        then = f"it stays a candidate: models.{told['model']}.compare.margin allows {margin} less"
    else:
        within = f"within the margin of {margin}, " if difference < 0 else ""
        then = f"{within}may be promoted: doit promote {told['model']}"
    surely = f"95 % {change(told['interval'])}, McNemar p {told['p']:.2g}"
    return f"the candidate is {how} ({surely}), {speed}; {then}"


def change(interval: list[float]) -> str:
    """An interval of a difference, in points: `-0.3 … 2.7`."""
    return " … ".join(f"{100 * value:.1f}" for value in interval)


def share(value: float, interval: list[float] | None = None) -> str:
    """`97.3 %`, with its interval `97.3 % (94.8 … 98.7)`."""
    told = f"{100 * value:.1f} %"
    return f"{told} ({change(interval)})" if interval else told


def points(value: float) -> str:
    """A difference of shares: `+1.2 points`."""
    return f"{100 * value:+.1f} points" if value else "none"


def rows(told: Comparison) -> list[tuple[str, ...]]:
    """What was measured, the candidate's, the stable's, the change."""

    def both(key: str, text: Any) -> tuple[str, str]:
        return text(told[key]["candidate"]), text(told[key]["stable"])

    def ratio(candidate: float | None, stable: float | None) -> str:
        return f"× {candidate / stable:.2f}" if candidate and stable else ""

    accuracy = [share(told["accuracy"][who], told["accuracy_interval"][who]) for who in WHO]
    name = "accuracy, top-1" if "top5" in told else "accuracy"
    change_told = f"{points(told['difference'])} ({change(told['interval'])})"
    found = [(name, *accuracy, change_told)]
    if "top5" in told:
        top5 = [share(told["top5"][who]["accuracy"], told["top5"][who]["interval"]) for who in WHO]
        difference = told["top5"]["candidate"]["accuracy"] - told["top5"]["stable"]["accuracy"]
        found.append(("accuracy, top-5", *top5, points(difference)))
    for key, what in (("latency_ms", "latency"), ("server_ms", "server's own time")):
        for part in ("p50", "p95"):
            values = [told[key][who][part] for who in WHO]
            found.append((f"{what}, {part}", *(f"{v:.3g} ms" for v in values), ratio(*values)))
    if "tokens_per_second" in told:
        speed = told["tokens_per_second"]
        texts = both("tokens_per_second", lambda v: "" if v is None else f"{v:.0f}/s")
        found.append(("tokens written", *texts, ratio(speed["candidate"], speed["stable"])))
        texts = both("kl", lambda v: "" if v is None else f"{v:.4f} nats")
        found.append(("KL from the unquantized", *texts, ""))
    memory = told["memory_bytes"]
    texts = both("memory_bytes", lambda v: "unknown" if v is None else f"{v / 1e6:.0f} MB")
    found.append(("memory", *texts, ratio(memory["candidate"], memory["stable"])))
    return found


def heading(told: Comparison) -> str:
    """`dogs: Cycle 13 (…) (9e358456…) in candidate on edge against …, 300 images of …`."""
    names = [
        f"{told['labels'][who] or told[who]} ({told[who]}) in {told['channels'][who]}"
        for who in WHO
    ]
    asked = f"{told['set']['count']} {things(told)} of {told['set']['path']}"
    return f"{told['model']}: {' against '.join(names)}; {asked}"


def things(told: Comparison) -> str:
    """What the servers were asked."""
    return "images" if told["kind"] == "classifier" else "questions"


def table(told: Comparison) -> list[str]:
    """Lines for a terminal: the figures, the classes that changed most, the verdict."""
    changed = sorted((c for c in told["classes"] if c["change"]), key=lambda c: -abs(c["change"]))
    lines = [("", "candidate", "stable", "change"), *rows(told)]
    lines += [class_row(found) for found in changed[:ON_SCREEN]]
    more = len(changed) - ON_SCREEN
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    if more > 0:
        text.append(f"  and {more} classes more that changed")
    text.append(f"  the same answer to {share(told['agreement'])} of them")
    return [heading(told), *text, verdict(told)]


def class_row(found: dict[str, Any]) -> tuple[str, ...]:
    """One class: its name and how many there are, both accuracies, the change."""
    name = f"{found['class']} ({found['count']})"
    return name, share(found["candidate"]), share(found["stable"]), points(found["change"])


def markdown(told: Comparison, picture: str | None) -> str:
    """The report; `picture` is the plot's file name beside it."""
    gained, lost = (told["discordant"][who] for who in WHO)
    kind = "Class" if told["kind"] == "classifier" else "Category"
    text = [
        f"# {told['model']}: a candidate against what is stable",
        "",
        f"{heading(told)}.",
        "",
        f"**{verdict(told)}.**",
        "",
        "| | candidate | stable | change |",
        "|---|---:|---:|---:|",
        *map(markdown_row, rows(told)),
        "",
        f"Only the candidate is right on {gained}, only the stable one on {lost}; both gave the "
        f"same answer to {share(told['agreement'])}. In parentheses: 95 % intervals, of a share "
        "Wilson's, of the difference Agresti and Min's for paired proportions; p is McNemar's "
        "exact test's.",
        "",
    ]
    if picture:
        text += [f"![]({picture})", ""]
    text += [f"| {kind} | candidate | stable | change |", "|---|---:|---:|---:|"]
    text += [markdown_row(class_row(found)) for found in told["classes"]]
    digest = told["set"]["digest"]
    text += ["", f"The set's digest is {digest}; it took {told['seconds']:.0f} s.", ""]
    return "\n".join(text)


def markdown_row(cells: tuple[str, ...]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
