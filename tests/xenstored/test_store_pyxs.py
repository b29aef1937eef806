"""pyxs, an independent client from PyPI: every method of it."""

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from store_process import ThreadedStore

pyxs = pytest.importorskip("pyxs", reason="pyxs is not installed (pip install pyxs)")


@pytest.fixture
def client(store: ThreadedStore) -> Iterator[Any]:
    with pyxs.Client(unix_socket_path=str(store.path)) as client:
        yield client


def refused(number: int) -> Any:
    return pytest.raises(pyxs.PyXSError, check=lambda error: error.args[0] == number)


def test_nodes(client: Any) -> None:
    client.write(b"/foo/bar", b"baz")
    client[b"/foo/other"] = b"1"
    assert client.read(b"/foo/bar") == client[b"/foo/bar"] == b"baz"
    assert client.read(b"/nothing", b"instead") == b"instead"
    with refused(errno.ENOENT):
        client.read(b"/nothing")
    client.mkdir(b"/foo/dir")
    client.mkdir(b"/foo/dir")
    assert client.list(b"/foo") == [b"bar", b"other", b"dir"]
    assert client.list(b"/foo/dir") == []
    assert client.exists(b"/foo/dir")
    assert not client.exists(b"/foo/none")
    client.delete(b"/foo/bar")
    del client[b"/foo/other"]
    with refused(errno.ENOENT):
        client.delete(b"/none/none")
    assert list(client.walk(b"/foo")) == [(b"/foo", b"", [b"dir"]), (b"/foo/dir", b"", [])]
    assert list(client.walk(b"/foo", topdown=False))[-1][0] == b"/foo"


def test_permissions(client: Any) -> None:
    client.write(b"/foo", b"x")
    assert client.get_perms(b"/foo") == [b"n0"]
    client.set_perms(b"/foo", [b"b1", b"r2"])
    assert client.get_perms(b"/foo") == [b"b1", b"r2"]


def test_domains(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # It looks in /proc/xen for whether it runs in dom0.
    monkeypatch.setattr(pyxs.Client, "SU", True)
    assert client.get_domain_path(7) == b"/local/domain/7"
    assert not client.is_domain_introduced(7)
    client.introduce_domain(7, 12, 3)
    client.introduce_domain(8, 12, 3)
    assert client.is_domain_introduced(7)
    client.set_target(7, 8)
    client.resume_domain(7)
    client.release_domain(7)
    client.release_domain(8)
    assert not client.is_domain_introduced(7)
    with refused(errno.ENOENT):
        client.release_domain(7)


def test_transactions(client: Any, store: ThreadedStore) -> None:
    client.transaction()
    client.write(b"/t", b"1")
    assert client.commit()
    client.transaction()
    client.write(b"/t", b"2")
    client.rollback()
    assert client.read(b"/t") == b"1"
    client.transaction()
    client.read(b"/t")
    with pyxs.Client(unix_socket_path=str(store.path)) as other:
        other.write(b"/t", b"3")
    client.write(b"/t", b"4")
    assert not client.commit()
    assert client.read(b"/t") == b"3"


def test_monitor(client: Any, store: ThreadedStore) -> None:
    with client.monitor() as monitor:
        monitor.watch(b"/w", b"token")
        assert tuple(next(monitor.wait())) == (b"/w", b"token")
        with pyxs.Client(unix_socket_path=str(store.path)) as other:
            other.write(b"/w/x", b"1")
            other.write(b"/elsewhere", b"1")
            other.write(b"/w", b"1")
        events = monitor.wait()
        assert tuple(next(events)) == (b"/w/x", b"token")
        assert tuple(next(events)) == (b"/w", b"token")
        monitor.watch(b"@introduceDomain", b"intro")
        assert next(events).path == b"@introduceDomain"
        monitor.unwatch(b"/w", b"token")
        monitor.unwatch(b"@introduceDomain", b"intro")
    with pyxs.monitor(unix_socket_path=str(store.path)) as shortcut:
        shortcut.watch(b"/v", b"t")
        assert tuple(next(shortcut.wait())) == (b"/v", b"t")


def test_it_finds_the_socket_by_the_environment(store: ThreadedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(store.path))
    with pyxs.Client() as client:
        assert client.read(b"/tool") == b""
