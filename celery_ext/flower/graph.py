"""What a job waits for and who waits for it, as a small picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from celery_ext.job import Job

__all__ = ('Edge', 'Graph', 'Node', 'graph_of')

#: Steps from the job that are shown in each direction.
DEPTH = 3
#: Jobs in one column, and in all.
ROWS, MOST = 7, 36

WIDTH, HEIGHT = 220, 44
GAP_X, GAP_Y = 56, 14
MARGIN = 6


@dataclass
class Node:
    """A job in the picture.

    Args:
        id: of the task; ``''`` for "and so many more".
        column: how many steps from the job: below 0 what it waits for, above 0 who waits for it.
        row: its place in the column.
        job: what is known of it; None if it has ended, or has not been published yet.
        label: what stands in it.
    """

    id: str
    column: int
    row: int = 0
    job: Job | None = None
    label: str = ''
    x: float = 0.0
    y: float = 0.0

    @property
    def state(self) -> str:
        if self.job is not None:
            return self.job.state
        return 'unknown' if self.id else 'more'

    @property
    def task(self) -> str:
        return self.job.task if self.job is not None else ''


@dataclass
class Edge:
    """From a job to one that waits for it."""

    source: Node
    target: Node

    @property
    def path(self) -> str:
        """For SVG."""
        left, right = self.source.x + WIDTH, self.target.x
        from_y, to_y = self.source.y + HEIGHT / 2, self.target.y + HEIGHT / 2
        bend = (right - left) / 2
        return (
            f'M{left:.0f},{from_y:.0f} C{left + bend:.0f},{from_y:.0f} '
            f'{right - bend:.0f},{to_y:.0f} {right - 4:.0f},{to_y:.0f}'
        )


@dataclass
class Graph:
    """The picture: jobs in columns, those to the left come first."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    node_width: int = WIDTH
    node_height: int = HEIGHT

    @property
    def width(self) -> float:
        return max(node.x for node in self.nodes) + WIDTH + MARGIN

    @property
    def height(self) -> float:
        return max(node.y for node in self.nodes) + HEIGHT + MARGIN


def graph_of(extension: Any, job: Job) -> Graph | None:
    """The picture around a job; None if it waits for nobody, and nobody for it."""
    if not job.info.dependencies and not job.info.dependent_count:
        return None
    graph = Graph([Node(job.id, 0, job=job)])
    for direction in (-1, 1):
        _grow(extension, graph, direction)
    _place(graph)
    return graph


def _grow(extension: Any, graph: Graph, direction: int) -> None:
    """Adds what is reached in one direction, step by step."""
    known = {node.id: node for node in graph.nodes if node.column == 0}
    edge = [node for node in graph.nodes if node.column == 0]
    for step in range(1, DEPTH + 1):
        wanted: dict[str, list[Node]] = {}
        hidden: dict[str, int] = {}
        for node in edge:
            ids, total = _neighbours(node.job, direction)
            for one in ids:
                wanted.setdefault(one, []).append(node)
            hidden[node.id] = total - len(ids)
        fresh = [one for one in wanted if one not in known]
        shown = fresh[: max(0, min(ROWS, MOST - len(graph.nodes)))]
        jobs = extension.jobs.some(shown) if shown else {}
        column = [Node(one, step * direction, job=jobs.get(one)) for one in shown]
        known.update({node.id: node for node in column})
        graph.nodes += column
        for one, others in wanted.items():
            if one in known:
                graph.edges += (_edge(known[one], other, direction) for other in others)
        left = len(fresh) - len(shown) + sum(hidden.values())
        if left:
            more = Node('', step * direction, label=f'and {left:,} more')
            graph.nodes.append(more)
            graph.edges.append(_edge(more, edge[0], direction))
        edge = [node for node in column if node.job is not None]
        if not edge:
            return


def _neighbours(job: Job | None, direction: int) -> tuple[tuple[str, ...], int]:
    if job is None:
        return (), 0
    if direction < 0:
        return tuple(job.depends_on), job.info.dependencies
    return job.dependents, job.info.dependent_count


def _edge(node: Node, towards: Node, direction: int) -> Edge:
    return Edge(node, towards) if direction < 0 else Edge(towards, node)


def _place(graph: Graph) -> None:
    first = min(node.column for node in graph.nodes)
    columns: dict[int, list[Node]] = {}
    for node in graph.nodes:
        columns.setdefault(node.column, []).append(node)
    tallest = max(map(len, columns.values()))
    for number, column in columns.items():
        offset = (tallest - len(column)) / 2
        for row, node in enumerate(column):
            node.row = row
            node.x = MARGIN + (number - first) * (WIDTH + GAP_X)
            node.y = MARGIN + (row + offset) * (HEIGHT + GAP_Y)
