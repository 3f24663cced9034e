"""The rules of the house: who may import whom, and where keys are spelled."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'kombu_reliable'

#: Imports go from a later layer to an earlier one, or stay inside their own.
LAYERS = (
    {'errors', 'wire', 'types', 'hooks'},
    {'keys', 'options', 'urls', 'envelope', 'registration', 'embedded_watcher'},
    {'scripts', 'embedded'},
    {'client', 'store'},
    {'transport'},
)

#: Longer files need a reason; so far there is none.
LONGEST_FILE = 400


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob('*.py'))


def imports(path: Path) -> Iterator[str]:
    """What a module imports when it runs; what only type checkers see does not count."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def layer_of(module: str) -> int:
    name = module.split('.')[1]
    return next(number for number, names in enumerate(LAYERS) if name in names)


def known(module: str) -> bool:
    parts = module.split('.')
    return parts[0] == 'kombu_reliable' and any(
        parts[1:2][0] in names for names in LAYERS if parts[1:]
    )


def test_every_module_has_a_layer() -> None:
    named = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    named -= {'__init__', '__pycache__', 'py', 'lua'}
    assert named == set().union(*LAYERS)


@pytest.mark.parametrize('path', modules('kombu_reliable'), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT).with_suffix('')
    own = '.'.join(relative.parts)
    used = set(imports(path))
    assert not [name for name in used if name.split('.')[0] in ('celery', 'celery_ext')]
    if own == 'kombu_reliable.__init__':
        return
    for name in filter(known, used):
        assert layer_of(name) <= layer_of(own), f'{own} imports {name}'


@pytest.mark.parametrize('path', modules('celery_ext'), ids=lambda p: str(p.relative_to(ROOT)))
def test_celery_ext_stands_on_public_names(path: Path) -> None:
    private = [name for name in imports(path) if re.match(r'kombu_reliable\..*\b_', name)]
    assert not private


def test_keys_are_spelled_in_one_place() -> None:
    spelled = re.compile(r"""['"]\{kr:""")
    guilty = [path.name for path in modules('kombu_reliable') if spelled.search(path.read_text())]
    assert guilty == ['keys.py']
    lua = [
        path.name for path in PACKAGE.rglob('*.lua') if re.search(r"'\w{1,5}:'", path.read_text())
    ]
    assert lua == []


def test_no_lua_in_python() -> None:
    guilty = [path.name for path in modules('kombu_reliable') if 'redis.call' in path.read_text()]
    assert guilty == []


def test_files_stay_small() -> None:
    long = [
        str(path.relative_to(ROOT))
        for folder in ('kombu_reliable', 'celery_ext')
        for path in (*modules(folder), *(ROOT / folder).rglob('*.lua'))
        if len(path.read_text().splitlines()) > LONGEST_FILE
    ]
    assert long == []
