"""What users install is the wheel, not this checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.servers import Server

ROOT = Path(__file__).parents[1]

USE_IT = """
import kombu_reliable, pathlib, sys
assert 'site-packages' in kombu_reliable.__file__, kombu_reliable.__file__
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])

@app.task(name='add')
def add(x, y):
    return x + y

from celery.contrib.testing.worker import start_worker
with start_worker(app, perform_ping_check=False, shutdown_timeout=20):
    print(add.delay(20, 22).get(timeout=20))
"""


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=170,
        **options,  # type: ignore[call-overload]
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp('wheel')
    # Not in place: that writes the entry points anew, by which other tests' workers are found.
    source = directory / 'source'
    ignored = shutil.ignore_patterns('.*', '*.egg-info', 'build', '__pycache__', 'tests')
    shutil.copytree(ROOT, source, ignore=ignored)
    run(sys.executable, '-m', 'build', '--wheel', '--outdir', directory, source)
    [built] = directory.glob('*.whl')
    return built


def test_the_wheel_holds_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('kombu_reliable', 'celery_ext'):
        for path in (ROOT / folder).rglob('*'):
            if path.suffix in ('.py', '.lua', '.typed', '.html', '.css', '.js'):
                assert str(path.relative_to(ROOT)) in names
    assert not [name for name in names if name.startswith(('tests', 'examples', 'benchmarks'))]


def test_the_installed_wheel_runs_a_task(wheel: Path, server: Server, tmp_path: Path) -> None:
    """In an environment of its own, on top of the libraries that are installed here."""
    venv.create(tmp_path / 'venv', with_pip=True, system_site_packages=False)
    python = tmp_path / 'venv/bin/python'
    [site] = (tmp_path / 'venv/lib').glob('python*/site-packages')
    run(python, '-m', 'pip', 'install', '-q', '--no-deps', wheel)
    # Libraries come from this environment, the package from the wheel: its folder stands first,
    # and a path file does not bring in an editable install of this checkout.
    libraries = next(Path(p) for p in sys.path if p.endswith('site-packages'))
    (site / 'libraries.pth').write_text(f'{libraries}\n')
    out = run(python, '-c', USE_IT, f'reliable+{server.url(15)}', cwd=tmp_path)
    assert out.strip().splitlines()[-1] == '42'
