"""Xen's own xenstore-* tools against our store, and `paravirt xenstore` beside them.

Each case is a shell of words for both; they must print the same and end the same, and leave the same store behind.
"""

import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from real_xen import program
from store_process import PARAVIRT, ThreadedStore, paravirt

from toolstack.cli import main
from toolstack.xenstore.client import ConnectionLost, StoreClient
from toolstack.xenstore.display import escape, unescape

LONG = "x" * 200
SETUP = [
    ("/a", "1"),
    ("/a/b", "two words"),
    ("/a/b/c", ""),
    ("/odd", 'tab\there "quoted" \\ back\nline\x01\x07\x08\x1f\x7f\xff'),
    ("/long", LONG),
    ("/local/domain/5/name", "guest"),
    ("/local/domain/5/device/vbd/51712/state", "4"),
    ("/a-rather-long-name-that-takes-much-of-the-line/and-another-long-one-below-it/and-a-third-one", "v" * 40),
]
LOOKING = [
    "ls",
    "ls -f",
    "ls -p",
    "ls -fp",
    "ls /a",
    "ls -fp /local",
    "ls /a /local/domain",
    "ls /a/b/c",
    "ls /nowhere",
    "ls tool",
    "read /a",
    "read /odd",
    "read /a /a/b",
    "read -p /a /a/b",
    "read -R /odd",
    "read -R -p /a /long",
    "read /nowhere",
    "read /a /nowhere",
    "read /",
    "list /",
    "list -p /a",
    "list /a /local",
    "list /a/b/c",
    "list /nowhere",
    "exists /a",
    "exists /a /a/b",
    "exists /a /nowhere",
    "exists /nowhere",
    "exists bad//path",
]
CHANGING: list[list[str]] = [
    ["write", "/new/one", "value"],
    ["write", "/new/one", "value", "/new/two", "2"],
    ["write", "/new", ""],
    ["write", "/new", "\\t\\n\\r\\\\"],
    ["write", "/new", "\\x41\\x4\\xzz"],
    ["write", "/new", "\\101\\7\\0"],
    ["write", "/new", "\\q\\"],
    ["write", "-R", "/new", "\\t\\x41"],
    ["write", "relative/path", "x"],
    ["write", "/bad//path", "x"],
    ["write", "/fine", "1", "/bad/", "x"],
    ["rm", "/a"],
    ["rm", "/a/b/c", "/odd"],
    ["rm", "-t", "/local/domain/5/device/vbd/51712/state"],
    ["rm", "-t", "/a/b/c"],
    ["rm", "/a/nothing"],
    ["rm", "/nothing/at/all"],
    ["rm", "/"],
    ["chmod", "/a", "n5"],
    ["chmod", "/a", "r0", "w7", "b3"],
    ["chmod", "-u", "/a/b/c", "n2", "r3"],
    ["chmod", "-r", "/a", "b4"],
    ["chmod", "-r", "-u", "/a/b", "w1"],
    ["chmod", "/nowhere", "n0"],
]


def fill(store: ThreadedStore) -> None:
    with StoreClient(store.path) as client:
        for path, value in SETUP:
            client.write(path, value.encode("latin-1"))


def content(store: ThreadedStore) -> list[tuple[bytes, bytes, str]]:
    tree = store.server.store.tree
    return [(path, node.value, str(node.perms)) for path, node in tree.walk()]


def real(store: ThreadedStore, words: list[str]) -> tuple[int, bytes]:
    tool, *rest = words
    done = subprocess.run(
        [program(f"xenstore-{tool}"), *rest], env=store.environment(), capture_output=True, timeout=20
    )
    return done.returncode, done.stdout


def ours(store: ThreadedStore, words: list[str]) -> tuple[int, bytes]:
    result = CliRunner().invoke(main, ["xenstore", *words], env={"XENSTORED_PATH": str(store.path)})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout_bytes


@pytest.mark.parametrize("words", LOOKING)
def test_looking_shows_what_the_tool_shows(store: ThreadedStore, words: str) -> None:
    fill(store)
    before = content(store)
    assert ours(store, words.split()) == real(store, words.split())
    assert content(store) == before


@pytest.mark.parametrize("words", CHANGING, ids=lambda words: " ".join(words))
def test_changing_does_what_the_tool_does(store: ThreadedStore, tmp_path: Path, words: list[str]) -> None:
    other = ThreadedStore(tmp_path / "other")
    try:
        fill(store)
        fill(other)
        assert ours(store, words) == real(other, words)
        assert content(store) == content(other)
    finally:
        other.stop()


@pytest.mark.parametrize("words", ["read", "list", "rm", "exists", "chmod /a", "write /a", "watch"])
def test_what_makes_no_sense_is_refused_by_both(store: ThreadedStore, words: str) -> None:
    assert ours(store, words.split())[0] == 2
    assert real(store, words.split())[0] != 0


def test_xenstore_as_one_program(store: ThreadedStore) -> None:
    subprocess.run([program("xenstore"), "write", "/x", "y"], env=store.environment(), check=True, timeout=20)
    done = subprocess.run([program("xenstore"), "read", "/x"], env=store.environment(), capture_output=True, timeout=20)
    assert done.stdout == b"y\n"


@pytest.mark.parametrize("command", ["theirs", "ours"])
def test_watch(store: ThreadedStore, command: str) -> None:
    words = ["-n", "4", "/a", "/b"]
    if command == "theirs":
        arguments = [program("xenstore-watch"), *words]
    else:
        arguments = [*PARAVIRT, "xenstore", "watch", *words]
    with subprocess.Popen(arguments, env=store.environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == ["/a\n", "/b\n"]
        with StoreClient(store.path) as client:
            client.write("/a/deep/node", "1")
            client.write("/c", "1")
            client.write("/b", "1")
        assert [process.stdout.readline(), process.stdout.readline()] == ["/a/deep/node\n", "/b\n"]
        assert process.wait(10) == 0


def test_a_watch_ends_with_the_store(tmp_path: Path) -> None:
    store = ThreadedStore(tmp_path / "socket")
    with StoreClient(store.path) as client:
        client.watch("/a", "t")
        store.stop()
        assert client.next_event() == (b"/a", b"t")
        with pytest.raises(ConnectionLost, match="hung up"):
            client.next_event()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["check"], "OK\n"),
        (["log", "on"], "OK\n"),
        (["log", "off"], "OK\n"),
        (["print", "hello"], "OK\n"),
        (["quota", "set", "nodes", "12"], "OK\n"),
        (["quota-soft", "set", "memory", "12"], "OK\n"),
    ],
)
def test_control(store: ThreadedStore, words: list[str], expected: str) -> None:
    done = subprocess.run(
        [program("xenstore-control"), *words], env=store.environment(), capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (0, expected)
    assert ours(store, ["control", *words]) == (0, expected.encode())


@pytest.mark.parametrize("words", [["help"], ["quota"], ["quota-soft"], ["quota", "0"]])
def test_control_that_tells(store: ThreadedStore, words: list[str]) -> None:
    done = subprocess.run(
        [program("xenstore-control"), *words], env=store.environment(), capture_output=True, timeout=20
    )
    assert done.returncode == 0
    assert ours(store, ["control", *words]) == (0, done.stdout)
    assert len(done.stdout) > 40


def test_xens_own_test_passes(store: ThreadedStore) -> None:
    done = subprocess.run(
        [program("test-xenstore"), "-i", "3"], env=store.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 12
    assert "ns" in done.stdout


def test_xens_own_random_test_passes(store: ThreadedStore) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [program("test-xenstore"), "-r", "2"], env=store.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("value", [bytes(range(256)), b"", b"\\", b"\\x", b"a\\nb"])
def test_escapes_come_back(value: bytes) -> None:
    assert unescape(escape(value).encode()) == value


def test_large_directories_are_listed_whole(store: ThreadedStore) -> None:
    names = [f"a-name-of-some-length-{number}" for number in range(700)]
    with StoreClient(store.path) as client:
        tx = client.start()
        for name in names:
            client.write(f"/big/{name}", "", tx)
        client.end(tx, commit=True)
        assert client.directory("/big") == [name.encode() for name in names]
    assert ours(store, ["list", "/big"])[1].decode().split() == names
    assert real(store, ["list", "/big"])[1].decode().split() == names


def test_a_command_as_a_process(store: ThreadedStore) -> None:
    assert paravirt("xenstore", "write", "/x", "1", path=store.path).returncode == 0
    assert paravirt("xenstore", "read", "/x", path=store.path).stdout == "1\n"
    missing = paravirt("xenstore", "read", "/y", path=store.path)
    assert (missing.returncode, missing.stdout, missing.stderr) == (1, "", "paravirt: could not read /y: ENOENT\n")
