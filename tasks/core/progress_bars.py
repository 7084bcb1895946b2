"""The lines of running tasks on a terminal, by rich. Imported only when there is one."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn
from rich.text import Text


class RateAndTimeLeft(TextColumn):
    """`12.3 MB/s, 4 s left` for bytes, `3/20, 7 s left` for steps; elapsed time when unknown."""

    def render(self, task: Task) -> Text:
        """The text of one line's last column."""
        if not task.total:
            return Text(f"{task.elapsed or 0:.0f} s")
        left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
        if task.fields["unit"] == "B":
            rate = f"{(task.speed or 0) / 1e6:.1f} MB/s"
        else:
            rate = f"{task.completed:.0f}/{task.total:.0f} {task.fields['unit']}"
        return Text(rate + left)


class ProgressBars:
    """One line per running task; `console` prints above them."""

    def __init__(self, stream: Any) -> None:
        self.console = Console(file=stream)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            RateAndTimeLeft(""),
            console=self.console,
            transient=True,
        )
        self._lines: dict[str, Any] = {}
        self._progress.start()

    def show(self, name: str, label: str, done: float, total: float, unit: str) -> None:
        """Show how far `name` is; a total of 0 is unknown."""
        if name not in self._lines:
            self._lines[name] = self._progress.add_task(name, total=None, unit=unit)
        self._progress.update(
            self._lines[name],
            description=f"{name} {label}".strip(),
            completed=done,
            total=total or None,
            unit=unit,
        )

    def remove(self, name: str) -> None:
        """Drop the line of `name`, if there is one."""
        line = self._lines.pop(name, None)
        if line is not None:
            self._progress.remove_task(line)

    def stop(self) -> None:
        """Give the terminal back."""
        self._progress.stop()
