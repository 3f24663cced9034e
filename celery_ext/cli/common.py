"""What all commands share: the app and its extension, errors, questions, progress.

A command file looks like this; its name stands in ``COMMANDS`` of :mod:`celery_ext.cli`:

    @command('limits', examples=['celery -A proj reliable limits'])
    @click.argument('name', required=False)
    def limits(cli: Cli, name: str | None) -> None:
        '''Shows limits.'''
        found = [{'name': one.name, 'used': one.used} for one in cli.ext.limits]
        cli.show({'limits': found}, cli.table(found, [Column('name'), Column('used', right=True)]))

Exit codes: 0, it is done; 1, it is not, and one line on stderr says why; 2, the command line
makes no sense.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, wraps
from typing import Any, NoReturn

import click
import redis.exceptions
from click.shell_completion import CompletionItem
from kombu.exceptions import OperationalError

import kombu_reliable
from celery_ext.broker import is_ours
from celery_ext.cli import output
from celery_ext.cli.output import Column
from celery_ext.installation import Extension
from kombu_reliable import ReliableError

__all__ = ('Cli', 'Column', 'Failed', 'QueueName', 'command', 'group', 'yes_option')

#: What is told in one line.
KNOWN = (ReliableError, redis.exceptions.RedisError, OperationalError, OSError)


class Failed(click.ClickException):
    """Ends a command with one line on stderr and an exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(output.visible(message))
        self.exit_code = code  # type: ignore[misc]


class Visitor(Extension):
    """The extension of an app that has not installed it: looks and acts, changes no settings."""

    @cached_property
    def store(self) -> kombu_reliable.Store:
        # Nobody would read of the ends that the workers of such an app do not see.
        return kombu_reliable.open_store(self.app.connection_for_write())


def extension_of(app: Any) -> Extension:
    """The extension that an app has, or one for this command.

    Raises:
        Failed: there is no app, or it is on another broker.
    """
    # Celery's current app is a proxy.
    app = getattr(app, '_get_current_object', lambda: app)()
    if not is_ours(app):
        raise Failed(_no_broker(app))
    known: Extension | None = app.__dict__.get('celery_ext')
    return known or Visitor(app)


def _no_broker(app: Any) -> str:
    if app.main in (None, 'default') and not app.conf.broker_url:
        return (
            'which app? Name it in front of the command, as in "celery -A proj reliable ...", '
            'or its broker: "celery -b reliable+redis://host reliable ..."'
        )
    return (
        f'the broker of {app.main or "the app"} is not kombu_reliable: '
        'write "reliable+" in front of its broker URL'
    )


class Cli:
    """What a command works with.

    Args:
        ctx: click's context, with that of Celery in it.
        json: print a JSON document instead of text.
        yes: ask nothing.

    Example:
        >>> cli.show({'paused': True}, 'the queue is paused')
    """

    def __init__(self, ctx: click.Context, json: bool = False, yes: bool = False) -> None:
        self.ctx = ctx
        self.json = json
        self.yes = yes

    @property
    def app(self) -> Any:
        """The Celery app."""
        obj = self.ctx.obj
        app = getattr(obj, 'app', None)
        if app is None:
            raise Failed('run it as "celery -A proj reliable ..."')
        return getattr(app, '_get_current_object', lambda: app)()

    @cached_property
    def ext(self) -> Extension:
        """The app's extension."""
        return extension_of(self.app)

    # -- output ------------------------------------------------------------------

    def show(self, document: Any, *texts: str) -> None:
        """Prints what was found or done, once a command.

        Args:
            document: for ``--json``; its keys stay the same from version to version.
            texts: for people, parted by empty lines.
        """
        if self.json:
            output.print_json(document)
        else:
            text = '\n\n'.join(text for text in texts if text)
            if text:
                output.write(text)

    def table(
        self,
        records: Iterable[Mapping[str, Any]],
        columns: Sequence[Column],
        empty: str = 'nothing',
    ) -> str:
        """Records as a table that fits the terminal; see :class:`.Column`."""
        return output.table(records, columns, empty, output.terminal_width())

    def note(self, text: str) -> None:
        """Says something beside what the command is about, on stderr."""
        output.write(output.visible(text, lines=True), err=True)

    def fail(self, message: str, code: int = 1) -> NoReturn:
        """Ends the command with one line on stderr."""
        raise Failed(message, code)

    # -- talk --------------------------------------------------------------------

    def confirm(self, question: str) -> None:
        """Asks before something is destroyed, unless ``--yes`` was given.  Only yes goes on."""
        if self.yes:
            return
        try:
            click.confirm(output.visible(question), abort=True, err=True)
        except click.Abort:
            self.fail('nothing was changed; --yes answers beforehand')

    @contextlib.contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A line on stderr that counts up, if that is a terminal.

        Yields:
            What to call with the number so far.
        """
        loud = sys.stderr.isatty() and not self.json

        def tell(done: int) -> None:
            if not loud:
                return
            bar = _bar(done, total) if total else ''
            whole = f' of {output.count(max(done, total))}' if total else ''
            click.echo(f'\r\x1b[K{label} {bar}{output.count(done)}{whole}', err=True, nl=False)

        try:
            yield tell
        finally:
            if loud:
                click.echo('\r\x1b[K', err=True, nl=False)


def _bar(done: int, total: int, width: int = 20) -> str:
    full = min(width, width * done // total)
    return f'[{"#" * full}{"." * (width - full)}] '


# -- commands --------------------------------------------------------------------


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Tells errors that are known in one line, with exit code 1."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read has left: click ends without a word
    except KNOWN as error:
        raise Failed(_line_of(error)) from error


def _line_of(error: BaseException) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    if isinstance(error, ReliableError):
        return text
    if isinstance(
        error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | OSError
    ):
        return f'no connection to the server: {text}'
    return f'{type(error).__name__}: {text}'


def command(
    name: str, *, examples: Sequence[str] = (), destroys: bool = False, **attrs: Any
) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a function a command, with ``--json``; its first argument is a :class:`Cli`.

    Args:
        name: of the command.
        examples: command lines for its help.
        destroys: add ``--yes``; the function calls ``cli.confirm``.
        attrs: for :class:`click.Command`.
    """
    return _made(name, examples, destroys, attrs)


def _made(
    name: str, examples: Sequence[str], destroys: bool, attrs: dict[str, Any],
    owner: click.Group | None = None,
) -> Callable[[Callable[..., None]], click.Command]:  # fmt: skip
    def decorate(fun: Callable[..., None]) -> click.Command:
        @wraps(fun)
        def run(as_json: bool, yes: bool = False, **params: Any) -> None:
            with told():
                fun(Cli(click.get_current_context(), as_json, yes), **params)

        callback: Any = click.option(
            '--json', 'as_json', is_flag=True, help='Print one JSON document.'
        )(run)
        if destroys:
            callback = yes_option(callback)
        attrs.setdefault('epilog', _epilog(examples))
        made = click.command(name, cls=click.Command, **attrs)(callback)
        if owner is not None:
            owner.add_command(made)
        return made

    return decorate


def yes_option(fun: Any) -> Any:
    """Adds ``--yes``."""
    return click.option('-y', '--yes', is_flag=True, help='Do not ask.')(fun)


def _epilog(examples: Sequence[str]) -> str | None:
    if not examples:
        return None
    return '\b\nExamples:\n' + '\n'.join(f'  {one}' for one in examples)


class Group(click.Group):
    """Commands below a name: ``celery reliable failed ...``."""

    def action(
        self, name: str, *, examples: Sequence[str] = (), destroys: bool = False, **attrs: Any
    ) -> Callable[[Callable[..., None]], click.Command]:
        """As :func:`command`, below this group."""
        return _made(name, examples, destroys, attrs, owner=self)


def group(name: str, help: str, examples: Sequence[str] = ()) -> Group:
    """A group; its commands are made with ``@that.action(...)``.

    Example:
        >>> failed = group('failed', 'Dead letters.')
        >>> @failed.action('list')
        ... def list_(cli: Cli) -> None: ...
    """
    return Group(name, help=help, epilog=_epilog(examples))


class QueueName(click.ParamType):  # type: ignore[type-arg]
    """The name of a queue; the shell completes it."""

    name = 'queue'

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        with contextlib.suppress(Exception):  # a shell that completes must never see an error
            names = extension_of(_app_of(ctx)).queues.names()
            return [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return []


def _app_of(ctx: click.Context) -> Any:
    """While a shell completes no command has run yet, so nobody has read ``-A``."""
    if getattr(ctx.obj, 'app', None) is not None:
        return ctx.obj.app
    from celery.app.utils import find_app

    return find_app(ctx.find_root().params['app'])
