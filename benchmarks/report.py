"""Tables of the figures, and the bars that they must clear."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contenders import BASELINE, OURS

__all__ = ('BARS', 'Results', 'ratios', 'table', 'verdicts')

#: contender -> figure -> one value per round
Results = Mapping[str, Mapping[str, Sequence[float]]]

#: figure -> title and unit, in the order of the table
TITLES = {
    'drain_rate': ('drain', 'tasks/s'),
    'publish_rate': ('publish with delay()', 'tasks/s'),
    'single_rate': ('publish without Celery', 'msgs/s'),
    'batch_rate': ('publish in one batch()', 'msgs/s'),
    'latency_p50': ('latency p50', 'ms'),
    'latency_p99': ('latency p99', 'ms'),
    'lateness_p50': ('lateness of delayed, p50', 'ms'),
    'lateness_p99': ('lateness of delayed, p99', 'ms'),
    'lateness_min': ('lateness of delayed, min', 'ms'),
    'main_cpu': ('main process CPU, drain', 'us/task'),
    'pool_cpu': ('pool processes CPU, drain', 'us/task'),
    'publish_cpu': ('publisher CPU, delay()', 'us/task'),
    'single_cpu': ('publisher CPU, no Celery', 'us/msg'),
    'batch_cpu': ('publisher CPU, batch()', 'us/msg'),
    'server_cpu': ('server CPU, both', 'us/task'),
    'server_publish_cpu': ('server CPU, publish', 'us/task'),
    'server_drain_cpu': ('server CPU, drain', 'us/task'),
    'publish_commands': ('commands, publish', '/task'),
    'drain_commands': ('commands, drain', '/task'),
    'bytes': ('memory of a queued task', 'bytes'),
    'idle_quiet': ('idle, no heartbeat, gossip', 'cmds/s'),
    'idle_default': ("idle, Celery's defaults", 'cmds/s'),
}


@dataclass(frozen=True)
class Bar:
    """What a figure of ours must reach, by itself or as a ratio to one of the baseline."""

    figure: str
    limit: float
    at_least: bool = False
    against: str | None = None

    @property
    def text(self) -> str:
        sign = '>=' if self.at_least else '<='
        if self.against is None:
            return f'{TITLES[self.figure][0]} {sign} {self.limit:g} {TITLES[self.figure][1]}'
        what = TITLES[self.figure][0]
        other = '' if self.against == self.figure else f"'s {TITLES[self.against][0]}"
        return f'{what} {sign} {self.limit:g} x {BASELINE}{other}'

    def value(self, results: Results) -> float | None:
        """The median, None if it was not measured."""
        ours = results[OURS].get(self.figure)
        if not ours:
            return None
        if self.against is None:
            return statistics.median(ours)
        base = results[BASELINE].get(self.against)
        return statistics.median(ratios(ours, base)) if base else None

    def cleared(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


BARS = (
    Bar('drain_rate', 2.5, at_least=True, against='drain_rate'),
    Bar('publish_rate', 1.15, at_least=True, against='publish_rate'),
    Bar('batch_rate', 4.0, at_least=True, against='single_rate'),
    Bar('batch_rate', 0.5, at_least=True, against='batch_rate'),
    Bar('bytes', 0.6, against='bytes'),
    Bar('server_cpu', 0.9, against='server_cpu'),
    Bar('latency_p50', 1.1, against='latency_p50'),
    Bar('lateness_p99', 5.0),
    Bar('lateness_min', 0.0, at_least=True),
    Bar('idle_quiet', 0.3),
    Bar('idle_default', 1.5),
)


def ratios(ours: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round: what loads the machine in a round loads both."""
    return [one / other for one, other in zip(ours, base, strict=True) if other]


def _number(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _cell(values: Sequence[float] | None) -> str:
    if not values:
        return 'n/a'
    middle = _number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f'{middle} ({_number(min(values))}-{_number(max(values))})'


def _lines(results: Results) -> Iterator[list[str]]:
    others = [name for name in results if name != BASELINE]
    yield ['', '', *results, *(f'{name} / {BASELINE}' for name in others)]
    for figure, (title, unit) in TITLES.items():
        if not any(results[name].get(figure) for name in results):
            continue
        base = results[BASELINE].get(figure)
        cells = []
        for name in others:
            values = results[name].get(figure)
            cells.append(_cell(ratios(values, base)) if values and base else '')
        yield [title, unit, *(_cell(results[name].get(figure)) for name in results), *cells]


def table(results: Results) -> str:
    """Medians, smallest and largest value of the rounds, and the ratios of each round."""
    lines = list(_lines(results))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join(
        '  '.join(
            [cells[0].ljust(widths[0]), cells[1].ljust(widths[1])]
            + [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        ).rstrip()
        for cells in lines
    )


def verdicts(results: Results) -> list[tuple[str, float | None, bool]]:
    """Each bar, what was measured, and whether that clears it; what is missing does not."""
    found = []
    for bar in BARS:
        value = bar.value(results)
        found.append((bar.text, value, value is not None and bar.cleared(value)))
    return found
