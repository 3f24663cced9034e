"""The outcome in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from benchmarks.chaos.kinds import WORKER_KILLS, Kind
from benchmarks.chaos.storm import Outcome
from benchmarks.harness import percentile

__all__ = ('plain', 'table', 'text')

#: Of each list of what went wrong, so many are shown.
SHOWN = 10


def kills(outcome: Outcome) -> tuple[int, int]:
    """Of workers, and of the server."""
    troubles = outcome.verdict.troubles
    servers = troubles[Kind.SERVER_KILLED] + troubles[Kind.POWER_LOST]
    return sum(troubles[kind] for kind in WORKER_KILLS), servers


def figures(outcome: Outcome) -> dict[str, Any]:
    """The rows of the table, whatever transport it was."""
    verdict = outcome.verdict
    workers, servers = kills(outcome)
    waits = sorted(one.seconds for one in verdict.recoveries if _is_kill(one.why))
    slowest = max(verdict.recoveries, key=lambda one: one.seconds, default=None)
    return {
        'transport': outcome.settings.transport,
        'seconds': round(outcome.seconds),
        'of these, draining': round(outcome.draining),
        'submitted': verdict.submitted,
        'stored': verdict.stored,
        'skipped (unique key)': verdict.skipped,
        'refused to the producer': sum(verdict.refused.values()),
        'producer died in the call': verdict.unanswered,
        'of these two, ran all the same': verdict.ran_unconfirmed,
        'tasks that ran': verdict.ran,
        'runs': verdict.runs,
        'dead letters, as wanted': verdict.dead,
        'kills of workers': workers,
        'kills of pool processes': verdict.troubles[Kind.CHILD_KILLED],
        'kills of producers': verdict.troubles[Kind.PRODUCER_KILLED],
        'kills of the server': servers,
        'other troubles': sum(verdict.troubles.values()) - workers - servers
        - verdict.troubles[Kind.CHILD_KILLED] - verdict.troubles[Kind.PRODUCER_KILLED],
        'deliveries in vain': verdict.lease_losses,
        'runs repeated': len(verdict.doubles),
        'of these, without a reason': len(verdict.unexplained),
        'lost': len(verdict.lost),
        'lost as everysec allows': len(verdict.forgotten),
        'halted by a server full or away': len(verdict.halted),
        'dependency violations': len(verdict.disordered),
        'throttle and unique violations': len(verdict.over_limit) + len(verdict.too_fast),
        'too many at once beside the lease': verdict.beside,
        'delays cut short': len(verdict.early),
        'recovery after a kill, s: median': _at(waits, 50),
        'recovery after a kill, s: p99': _at(waits, 99),
        'recovery after a kill, s: longest': _at(waits, 100),
        'longest after anything, s': round(slowest.seconds, 2) if slowest else None,
        'jobs that did not end': sum(outcome.left.values()),
        'keys left over': len(outcome.leaks),
        'surprises': len(outcome.surprises),
        'orphans that stay': outcome.orphans,
    }  # fmt: skip


def _is_kill(why: str) -> bool:
    return why in WORKER_KILLS


def _at(values: list[float], percent: float) -> float | None:
    return round(percentile(values, percent), 2) if values else None


def plain(outcome: Outcome) -> dict[str, Any]:
    """For machines."""
    verdict = outcome.verdict
    return {
        'settings': asdict(outcome.settings),
        'figures': figures(outcome),
        'faults': outcome.faults,
        'good': outcome.good,
        'troubles': dict(verdict.troubles),
        'kinds': dict(verdict.kinds),
        'refused': dict(verdict.refused),
        'why repeated': dict(Counter(one.why for one in verdict.doubles)),
        'details': [line.strip() for line in details(outcome)],
    }


def table(outcomes: list[Outcome]) -> str:
    """One column for each."""
    columns = [figures(one) for one in outcomes]
    width = max(map(len, columns[0]))
    return '\n'.join(
        f'{name:<{width}}' + ''.join(f'{_shown(column[name]):>12}' for column in columns)
        for name in columns[0]
    )


def _shown(value: Any) -> str:
    if value is None:
        return '-'
    return f'{value:,}' if isinstance(value, int | float) else str(value)


def text(outcome: Outcome) -> str:
    """What befell, and everything that is not as it should be."""
    verdict = outcome.verdict
    lines = ['what went wrong: ' + _counted(verdict.troubles)]
    lines.append('what was stored: ' + _counted(verdict.kinds))
    if verdict.refused:
        lines.append('what producers were told: ' + _counted(verdict.refused))
    if verdict.doubles:
        lines.append('why runs were repeated: ' + _counted(
            Counter(one.why or 'NOTHING THAT IS KNOWN' for one in verdict.doubles)
        ))  # fmt: skip
    slowest = sorted(verdict.recoveries, key=lambda one: -one.seconds)[:3]
    if slowest:
        lines.append('slowest recoveries: ' + ', '.join(
            f'{one.seconds:.1f} s ({one.why})' for one in slowest
        ))  # fmt: skip
    lines += details(outcome)
    return '\n'.join(lines)


def _counted(counts: Counter[str]) -> str:
    return ', '.join(f'{name} {count:,}' for name, count in counts.most_common())


def details(outcome: Outcome) -> Iterator[str]:
    verdict = outcome.verdict
    for title, losses in (
        ('lost', verdict.lost), ('too early for what it needs', verdict.disordered),
        ('before its time', verdict.early),
    ):  # fmt: skip
        for loss in losses[:SHOWN]:
            yield f'{title}: {loss.kind} {loss.id}: {loss.what}'
    for double in verdict.unexplained[:SHOWN]:
        first, second = double.first, double.second
        yield (
            f'repeated without a reason: {double.kind} {double.id}, attempt {first.attempt}: '
            f'delivery {first.delivery} by {first.worker} ({first.pid}) {first.start:.3f}-'
            f'{first.end or 0:.3f} {first.how}, then {second.delivery} by {second.worker} '
            f'({second.pid}) {second.start:.3f}'
        )
    for excess in (*verdict.over_limit, *verdict.too_fast)[:SHOWN]:
        yield (
            f'too many: {excess.name!r} allows {excess.allowed}, at {excess.at:.3f} there were '
            f'{len(excess.ids)}: {", ".join(excess.ids)}'
        )
    for name in verdict.strangers[:SHOWN]:
        yield f'nobody submitted {name}'
    if outcome.left:
        yield f'did not end: {_counted(Counter(outcome.left))}'
    for key in outcome.leaks[:SHOWN]:
        yield f'left over: {key}'
    yield from (f'surprise: {what}' for what in outcome.surprises[:SHOWN])
