"""The folder of compiled libraries: whatever is found there, what is loaded is whole and ours."""

import os
import shutil
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from vineppo.engine.llama.kernels import native
from vineppo.engine.llama.kernels.kernel_cache import cache_folder, file_name, find_kept, keep

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="no C++ compiler")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
NOBODY = 65534

# Loads a small library as the kernels are loaded, by so many processes as it is told: a damaged one may kill them.
LOADER = """
import os, sys, traceback
from pathlib import Path
from vineppo.engine.llama.kernels import native
native.SOURCE = Path(sys.argv[1])
def load():
    try:
        os._exit(native.load_library('float').number())
    except BaseException:
        traceback.print_exc()
        os._exit(255)
for line in sys.stdin:
    children = [os.fork() or load() for _ in range(int(line))]
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
"""
SOURCE = 'extern "C" int number() { return %d; }\nextern "C" const char filling[20000] = "many pages";'


class Loader:
    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache" / "vineppo"
        (folder / "small.cpp").write_text(SOURCE % 99)
        command = [sys.executable, "-c", LOADER, str(folder / "small.cpp")]
        environ = os.environ | {"XDG_CACHE_HOME": str(self.cache.parent)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def load(self, num_processes: int = 1) -> Path:
        """The one file that is there after all have loaded it."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{num_processes}\n")
        assert self.process.stdout.readline() == f"{[99] * num_processes}\n"
        (path,) = self.cache.glob("*.so")
        return path


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    loader = Loader(tmp_path_factory.mktemp("loader"))
    yield loader
    loader.process.communicate()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vineppo"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def plant(path: Path, folder: Path) -> None:
    """Somebody else's library that works, under a name that fits it."""
    source, library = folder / "planted.cpp", folder / "planted.so"
    source.write_text(SOURCE % 66)
    native.run_compiler("g++", "-shared", "-fPIC", "-o", library, source)
    content = library.read_bytes()
    planted = path.with_name(file_name(path.stem.rsplit("-", 1)[0], content))
    path.unlink()
    planted.write_bytes(content)
    os.chown(planted, NOBODY, NOBODY)


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.parents[2] / "elsewhere"))


@needs_compiler
def test_a_damaged_or_foreign_library_is_built_again(loader, tmp_path):
    path = loader.load()
    content = path.read_bytes()
    size = len(content)
    assert size > 5 * 4096
    damages = [
        *(partial(os.truncate, path, length) for length in (0, 63, 4096, 8192, size // 2, size - 1)),
        *(partial(flip, path, at) for at in (0, 40, size // 2, size - 1)),
        partial(path.write_bytes, content + b"\0"),
        partial(path.write_bytes, b"\0" * size),
        partial(link, path),
        partial(path.chmod, 0o666),
        path.unlink,
    ]
    if os.geteuid() == 0:
        damages += [partial(os.chown, path, NOBODY, NOBODY), partial(plant, path, tmp_path)]
    for damage in damages:
        damage()
        assert loader.load() == path
        assert path.read_bytes() == content
    untouched = path.stat().st_mtime_ns
    assert loader.load().stat().st_mtime_ns == untouched  # what is whole is not built again


@needs_compiler
def test_many_processes_at_once(loader):
    for _ in range(3):
        loader.load().unlink()
        path = loader.load(4)
        assert list(loader.cache.iterdir()) == [path]


def test_it_is_private_whatever_the_umask(cache):
    cache.parent.parent.chmod(0o700)
    before = os.umask(0)
    try:
        path = keep(cache_folder(), "native", b"library")
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert find_kept(cache_folder(), "native") == path
    assert find_kept(cache_folder(), "other") is None


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused(cache, mode):
    cache_folder().chmod(mode)
    with pytest.raises(PermissionError, match=r"others may write to .*chmod"):
        cache_folder()
    assert "others may write" in (native.why_not_kept() or "")


def test_a_folder_that_others_can_replace_is_refused(cache):
    cache_folder()
    cache.parent.chmod(0o777)
    with pytest.raises(PermissionError, match="others may replace"):
        cache_folder()
    cache.parent.chmod(0o1777)  # as /tmp: only the owner can
    assert cache_folder() == cache


@needs_root
def test_a_folder_of_somebody_else_is_refused_and_through_a_link_too(cache, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    cache.parent.mkdir()
    cache.symlink_to(theirs)
    with pytest.raises(PermissionError, match="another user"):
        cache_folder()
    cache.unlink()
    os.chown(cache.parent, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="another user"):
        cache_folder()


def test_a_relative_cache_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "vineppo"
    assert not (tmp_path / "here").exists()


@needs_compiler
@pytest.mark.parametrize("problem", ["no home", "a relative home", "a file", "others can write"])
def test_without_a_folder_they_are_built_for_this_process_alone(problem, cache, monkeypatch, tmp_path):
    source = tmp_path / "small.cpp"
    source.write_text(SOURCE % 5)
    monkeypatch.setattr(native, "SOURCE", source)
    if problem == "a file":
        cache.parent.mkdir()
        cache.write_text("")
    elif problem == "others can write":
        cache_folder().chmod(0o777)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "here")
        if problem == "no home":
            monkeypatch.setattr(Path, "home", no_home)
    native.load_library.cache_clear()
    try:
        assert native.load_library("float").number() == 5
        assert native.why_not_kept()
        assert not list(tmp_path.rglob("*.so"))
    finally:
        native.load_library.cache_clear()


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
