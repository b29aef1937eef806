"""Live update with Xen's own tool: another program goes on with the sockets, watches and transactions of the old."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from c_daemon import shim
from real_xen import program
from store_process import PATIENCE, connect, receive, service
from test_store_of_host import WAITER, guest, home, run

from guest_kernel.xenbus.wire import encode
from hypervisor.abi.io import xs_wire as xs
from toolstack.errors import UsageError
from toolstack.xenstore.client import Refused, StoreClient
from toolstack.xenstore.service import Service

OURS = shutil.which("paravirt", path=str(Path(sys.executable).parent))


@pytest.fixture
def ours() -> str:
    assert OURS is not None, "the command paravirt is not installed beside the interpreter"
    return OURS


@contextmanager
def store(path: Path, executable: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Ours as a process by its own name, so that it can be given as the new program too."""
    environment = os.environ | xen_environment(path.parent)
    with subprocess.Popen([executable, "xenstored", "--socket", str(path), *options], env=environment) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not path.exists():
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            yield process
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def xen_environment(directory: Path) -> dict[str, str]:
    return {"XENSTORED_RUNDIR": str(directory), "XEN_SHIM": str(directory)}


def update(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("xenstore-control"), "live-update", *words],
        env={**os.environ, "XENSTORED_PATH": str(path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_everything_goes_on(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "socket"
    with store(path, ours, "--quota", "nodes=50") as process, StoreClient(path) as one, StoreClient(path) as two:
        one.write("/a/b", "v")
        one.set_permissions("/a/b", ["r3", "n5"])
        one.watch("/a", "token")
        assert one.next_event() == (b"/a", b"token")
        tx = two.start()
        two.write("/a/in", "transaction", tx)
        assert two.read("/a/b", tx) == b"v"
        before = Path(f"/proc/{process.pid}/stat").read_text().split()[21]
        for _ in range(2):
            done = update(path, ours)
            assert (done.returncode, done.stderr.replace(SYSFS, "")) == (0, "")
        assert Path(f"/proc/{process.pid}/stat").read_text().split()[21] == before, "it is the same process"
        assert not (tmp_path / "state_dump").exists()
        assert one.read("/a/b") == b"v"
        assert one.permissions("/a/b") == ["r3", "n5"]
        assert b"nodes            :       50" in one.control("quota")
        with pytest.raises(Refused, match="ENOENT"):
            one.read("/a/in")
        two.end(tx, commit=True)
        assert one.next_event() == (b"/a/in", b"token")
        with StoreClient(path) as three:
            assert three.read("/a/in") == b"transaction"
        tx = two.start()
        two.read("/a/b", tx)
        one.write("/a/b", "other")
        assert update(path, ours).returncode == 0
        with pytest.raises(Refused, match="EAGAIN"):
            two.end(tx, commit=True)


def tree_of(path: Path) -> bytes:
    environment = {**os.environ, "XENSTORED_PATH": str(path)}
    command = [program("xenstore-ls"), "-fp"]
    return subprocess.run(command, env=environment, capture_output=True, check=True, timeout=PATIENCE).stdout


SYSFS = "ERROR:  Can't find hypervisor information in sysfs!\n"


def test_answers_that_have_not_been_read_are_sent_by_the_new_program(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "socket"
    with store(path, ours), StoreClient(path) as other, connect(path) as slow:
        other.write("/big", b"v" * 4000)
        slow.sendall(encode(xs.XS_READ, 5, 0, b"/big\0") * 500 + encode(xs.XS_READ, 6, 0, b"/big\0")[:7])
        for _ in range(2):
            assert update(path, ours).returncode == 0
        slow.sendall(encode(xs.XS_READ, 6, 0, b"/big\0")[7:])
        messages = receive(slow, 501)
        assert [message.req_id for message in messages] == [5] * 500 + [6]
        assert {message.payload for message in messages} == {b"v" * 4000}


def test_what_cannot_be_executed_leaves_the_old_one_running(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "socket"
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    plain.write_text("no program")
    broken.write_text("no program")
    broken.chmod(0o755)
    with store(path, ours), StoreClient(path) as client:
        client.write("/x", "1")
        client.watch("/x", "t")
        for name, sentence in (
            (tmp_path / "nowhere", "File not accessible."),
            (plain, "File not executable."),
            (broken, "Error activating new binary."),
        ):
            done = update(path, str(name))
            assert done.returncode == 3
            assert sentence in done.stderr
        assert client.read("/x") == b"1"
        assert client.next_event() == (b"/x", b"t")
        assert not (tmp_path / "state_dump").exists()
        assert update(path, ours).returncode == 0
        assert client.read("/x") == b"1"


def test_another_command_line(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "socket"
    with store(path, ours), StoreClient(path) as client:
        client.write("/x", "1")
        assert update(path, "-c", f"xenstored --socket {path} --domain 4", ours).returncode == 0
        assert client.read("/x") == b"1"
        client.set_permissions("/x", ["n4"])
        with pytest.raises(Refused, match="ENOENT"):
            client.set_permissions("/x", ["n5"])


def test_xens_own_daemon_takes_over(tmp_path: Path, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that we write is what the C daemon reads: nodes, rights, watches and sockets."""
    theirs = program("xenstored")
    path = tmp_path / "socket"
    (tmp_path / "domains").write_bytes(bytes([1] * 6) + bytes(0x8000 - 6))
    (tmp_path / "port-0").write_text("5")
    for domid in (0, 3):
        (tmp_path / f"ring-{domid}").write_bytes(bytes(4096))
    os.mkfifo(tmp_path / "events")
    # Ours calls no Xen, and is not disturbed.
    monkeypatch.setenv("LD_PRELOAD", str(shim()))
    with store(path, ours) as process, StoreClient(path) as one, StoreClient(path) as two:
        # The C daemon does not start with a node of a domain that is not introduced.
        one.request(xs.XS_INTRODUCE, b"3\x001\x007\0")
        one.write("/a/b/c", b"\0v\xff")
        one.write("/a/z", "")
        one.write("/a/y", "2")
        one.set_permissions("/a/b", ["n3", "r5", "b1"])
        two.watch("/a", "token")
        two.watch("rel", "r")
        two.watch("@releaseDomain", "end")
        for _ in range(3):
            two.next_event()
        tree = tree_of(path)
        tx = one.start()
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(
                [program("xenstore-control"), "live-update", "-c", "-N", "-t", "30", theirs],
                env={**os.environ, "XENSTORED_PATH": str(path)},
                timeout=1.5,
                capture_output=True,
            )
        # It does not know of our transactions, and so waits for them.
        assert os.readlink(f"/proc/{process.pid}/exe") != theirs
        # The tool has been killed: what it has prepared goes with its connection.
        deadline = time.monotonic() + PATIENCE
        while one.control("live-update", "-f", theirs) != b"OK":
            assert time.monotonic() < deadline
        assert one.control("live-update", "-a") == b"OK"
        one.end(tx, commit=True)
        done = update(path, "-c", "-N", theirs)
        assert done.returncode == 0, done.stderr
        assert os.readlink(f"/proc/{process.pid}/exe") == theirs
        again = tree_of(path)
        assert again == tree
        assert one.read("/a/b/c") == b"\0v\xff"
        one.write("/a/y", "3")
        one.write("/local/domain/0/rel/x", "3")
        assert two.next_event() == (b"/a/y", b"token")
        assert two.next_event() == (b"rel/x", b"r")
        # And back.
        done = update(path, "-c", f"xenstored --socket {path}", ours)
        assert done.returncode == 0, done.stderr
        assert os.readlink(f"/proc/{process.pid}/exe") != theirs
        assert one.read("/a/b/c") == b"\0v\xff"
        assert one.permissions("/a/b") == ["n3", "r5", "b1"]
        one.write("/a/z", "4")
        assert two.next_event() == (b"/a/z", b"token")


def test_a_state_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the state"):
        Service(tmp_path / "socket", live_update=True).run()
    (tmp_path / "state_dump").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"cannot go on with the state .*: the state is too short"):
        Service(tmp_path / "socket", live_update=True).run()


def test_the_store_of_a_running_host_updates_in_place(tmp_path: Path) -> None:
    def act(path: Path) -> None:
        with StoreClient(path) as one, StoreClient(path) as two:
            where = home(one)
            two.watch(f"{where}/data", "t")
            two.next_event()
            tx = one.start()
            one.write(f"{where}/data/more", "1", tx)
            assert update(path, "/bin/true").returncode == 0
            one.end(tx, commit=True)
            assert two.next_event() == (f"{where}/data/more".encode(), b"t")
            # The guest's ring and watches have come along.
            one.write(f"{where}/data/go", "updated")

    host, lines = run(guest(tmp_path, WAITER), tmp_path / "socket", act)
    assert any("told: updated" in line for line in lines)
    assert host.xenstored.server.update is None


def test_control_steps_out_of_order(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with service(path) as process:
        with StoreClient(path) as one, StoreClient(path) as two:
            assert one.control("live-update", "-a") == b"No live-update session active."
            assert one.control("live-update", "-s") == b"Not in live-update session."
            assert one.control("live-update", "-f", sys.executable) == b"OK"
            assert two.control("live-update", "-f", sys.executable) == b"live-update session already active."
            assert two.control("live-update", "-c", "x") == b"Not in live-update session."
            assert two.control("live-update", "-a") == b"OK"
            assert one.control("live-update", "-s") == b"Not in live-update session."
            assert one.control("live-update", "-f", sys.executable) == b"OK"
        # Whoever prepares it and leaves gives it up.
        with StoreClient(path) as three:
            assert three.control("live-update", "-a") == b"No live-update session active."
            for words in (["-q"], ["-s", "-q"], ["-s", "-t"], ["-c"], ["-f", "a", "b"], ["-a", "x"]):
                with pytest.raises(Refused, match="EINVAL"):
                    three.control("live-update", *words)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_log_files_and_reports(tmp_path: Path) -> None:
    path, log, report = tmp_path / "socket", tmp_path / "log", tmp_path / "report"
    with service(path) as process:
        with StoreClient(path) as client:
            with pytest.raises(Refused, match="EINVAL"):
                client.control("memreport")
            client.control("logfile", str(log))
            client.write("/logged", "1")
            client.control("log", "off")
            client.write("/hidden", "1")
            client.control("memreport", str(report))
            with pytest.raises(Refused, match="EINVAL"):
                client.control("memreport", "/nowhere/at/all")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert b"/logged" in log.read_bytes()
    assert b"/hidden" not in log.read_bytes()
    assert report.read_text().startswith("nodes 5, watches 0")
