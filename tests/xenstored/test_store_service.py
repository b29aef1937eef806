"""`paravirt xenstored`: how the process begins and ends."""

import os
import signal
import socket
import stat
from pathlib import Path

import pytest
from store_process import PATIENCE, connect, paravirt, receive, service

from guest_kernel.xenbus.wire import encode
from hypervisor.abi.io import xs_wire as xs
from toolstack.errors import UsageError
from toolstack.xenstore import address


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "socket"
    with service(path) as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with connect(path) as client:
            client.sendall(encode(xs.XS_READ, 1, 0, b"/tool\0"))
            assert receive(client, 1)[0].type == xs.XS_READ
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0
            assert client.recv(1) == b""
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert not path.exists()


def test_a_path_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with service(path) as process:
        second = paravirt("xenstored", "--socket", str(path), path=path)
        assert (second.returncode, second.stderr) == (2, f"paravirt: another daemon listens at '{path}'\n")
        with connect(path) as client:
            client.sendall(encode(xs.XS_READ, 1, 0, b"/tool\0"))
            assert len(receive(client, 1)) == 1
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with service(path) as process:
        process.kill()
        process.wait(PATIENCE)
    assert path.exists()
    address.listen(path).close()
    with service(path) as process:
        assert process.poll() is None


def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        address.listen(path)
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="No such file"):
        address.listen(tmp_path / "nowhere" / "socket")
    with pytest.raises(UsageError, match="at most 107 bytes"):
        address.listen(tmp_path / ("x" * 120))


def test_a_socket_that_somebody_else_put_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with service(path) as process:
        path.unlink()
        other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        other.bind(str(path))
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert path.exists()
        other.close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XENSTORED_PATH": "/a/b", "XENSTORED_RUNDIR": "/c"}, "/a/b"),
        ({"XENSTORED_RUNDIR": "/c"}, "/c/socket"),
        ({}, "/var/run/xenstored/socket"),
    ],
)
def test_the_socket_is_found_as_by_libxenstore(environment: dict[str, str], expected: str) -> None:
    assert address.socket_path(environment) == Path(expected)


def test_quotas_and_domains_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with service(path, "--quota", "path-max=20", "--domain", "5") as process:
        assert "path-max         :       20" in paravirt("xenstore", "control", "quota", path=path).stdout
        assert paravirt("xenstore", "write", "/" + "x" * 20, "", path=path).returncode == 1
        assert paravirt("xenstore", "write", "/a", "b", path=path).returncode == 0
        assert paravirt("xenstore", "chmod", "/a", "n5", path=path).returncode == 0
        refused = paravirt("xenstore", "chmod", "/a", "n6", path=path)
        assert (refused.returncode, refused.stderr) == (
            1,
            "paravirt: could not set the permissions of /a: ENOENT\n",
        )
        process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--quota", "node=3"], "there is no quota 'node'; did you mean 'nodes'?"),
        (["--quota", "nodes"], "quota 'nodes' is not NAME=NUMBER"),
        (["--quota", "nodes=-3"], "quota 'nodes=-3' is not NAME=NUMBER"),
        (["--trace", "/nowhere/at/all"], "cannot write the trace '/nowhere/at/all': No such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    result = paravirt("xenstored", "--socket", str(tmp_path / "socket"), *options, path=tmp_path)
    assert (result.returncode, result.stderr) == (2, f"paravirt: {sentence}\n")
    assert not os.listdir(tmp_path)


def test_the_trace_can_be_read(tmp_path: Path) -> None:
    path, trace = tmp_path / "socket", tmp_path / "store.trace"
    with service(path, "--trace", str(trace)) as process:
        assert paravirt("xenstore", "write", "/a/b", "c", path=path).returncode == 0
        process.terminate()
        assert process.wait(PATIENCE) == 0
    lines = paravirt("trace", str(trace), path=path).stdout
    assert "WRITE" in lines
    assert "/a/b" in lines


def test_a_log_that_is_rotated_begins_anew(tmp_path: Path) -> None:
    path, trace = tmp_path / "socket", tmp_path / "store.trace"
    with service(path, "--trace", str(trace)) as process:
        assert paravirt("xenstore", "write", "/before", "", path=path).returncode == 0
        trace.rename(tmp_path / "old.trace")
        process.send_signal(signal.SIGHUP)
        while not trace.exists():
            assert process.poll() is None
        assert paravirt("xenstore", "write", "/after", "", path=path).returncode == 0
        assert paravirt("xenstore", "control", "print", "a word", path=path).stdout == "OK\n"
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == "control: a word\n"
    assert "/before" in paravirt("trace", str(tmp_path / "old.trace"), path=path).stdout
    lines = paravirt("trace", str(trace), path=path).stdout
    assert "/after" in lines
    assert "/before" not in lines


def test_nobody_there_is_one_sentence(tmp_path: Path) -> None:
    result = paravirt("xenstore", "ls", path=tmp_path / "socket")
    assert (result.returncode, result.stderr) == (
        2,
        f"paravirt: cannot reach a store at '{tmp_path / 'socket'}': No such file or directory\n",
    )


def test_the_name_is_there_only_when_somebody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "socket"

    class Watched(socket.socket):
        def listen(self, backlog: int = 128, /) -> None:
            assert not path.exists()
            super().listen(backlog)

    monkeypatch.setattr(address.socket, "socket", Watched)
    with address.listen(path), Watched(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["socket"]
