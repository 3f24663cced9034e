"""What a task tells of itself while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import current_task

from celery_ext.job import Job
from kombu_reliable import TOKEN_HEADER, Fenced, Status, pack_id

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('CurrentJob', 'current_job')


class CurrentJob:
    """The job of the task that runs here.

    What it tells is stored with the job, at once.  If the lease of this run was lost and another
    worker has the job, it may tell nothing any more: :class:`.Fenced` is raised.

    Example:
        >>> @app.task
        ... def export(rows):
        ...     job = ext.current_job()
        ...     for number, row in enumerate(rows):
        ...         job.progress(number / len(rows))
        ...     job.log('exported', {'rows': len(rows)})
    """

    def __init__(self, extension: Extension, id: str, token: str, key: str) -> None:
        self._extension = extension
        #: Celery's task id.
        self.id = id
        #: Its own name in the store.
        self.key = key
        self._token = token

    def log(self, message: str, data: Any = None) -> None:
        """Adds a line to the history of the job.

        The first line and the last forty-nine are kept, each of at most 1,000 bytes.

        Args:
            message: what happened.
            data: what belongs to it, anything that JSON knows.
        """
        self._judge(self._extension.store.events.log(self.key, self._token, message, data))

    def progress(self, done: float) -> None:
        """Says how far it is, from 0 to 1."""
        self._judge(self._extension.store.events.progress(self.key, self._token, done))

    def tag(self, *tags: str) -> None:
        """Gives the job tags."""
        self.look().tag(*tags)

    def untag(self, *tags: str) -> None:
        """Takes tags from the job."""
        self.look().untag(*tags)

    def look(self) -> Job:
        """The job as others see it."""
        job: Job = self._extension.jobs.by_key(self.id, self.key)
        return job

    def _judge(self, status: Status) -> None:
        if status is not Status.DONE:
            raise Fenced(
                f"the lease of task {self.id} was lost, and its job is not this run's any more"
            )

    def __repr__(self) -> str:
        return f'<the current job {self.id}>'


def current_job(extension: Extension) -> CurrentJob | None:
    """The job of the task that runs in this thread; None outside of tasks, and in tasks that run
    eagerly or came from another broker."""
    request = current_task.request if current_task else None
    told = (getattr(request, 'headers', None) or {}).get(TOKEN_HEADER)
    if request is None or not isinstance(told, str):
        return None
    token, _, key = told.partition(' ')
    return CurrentJob(extension, request.id, token, key or pack_id(request.id))
