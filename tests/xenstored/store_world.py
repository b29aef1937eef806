"""A store without rings: clients that send bytes to the core and read what it queued for them."""

from backends.xenstored.connection import Connection
from backends.xenstored.control import inconsistencies
from backends.xenstored.quota import Quotas
from backends.xenstored.server import DomainState, Server
from guest_kernel.xenbus.wire import Message, encode, join, parse_all
from hypervisor.abi.io import xs_wire as xs


class Client:
    """One connection, spoken to in whole messages."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.connection = connection

    def send(self, kind: int, *strings: str, value: bytes = b"", tx: int = 0, req: int = 1) -> None:
        self.raw(encode(kind, req, tx, join(*strings) + value))

    def raw(self, data: bytes) -> None:
        self.server.receive(self.connection, data)

    def messages(self) -> list[Message]:
        return list(parse_all(self.connection.take(1 << 30)))

    def exchange(self, kind: int, *strings: str, value: bytes = b"", tx: int = 0) -> list[str]:
        """Everything that the client gets for a request, in order: `path|token` for events, `=payload` for replies."""
        self.send(kind, *strings, value=value, tx=tx)
        return self.shown()

    def shown(self) -> list[str]:
        shown = []
        for message in self.messages():
            text = message.payload.decode("latin-1")
            if message.type == xs.XS_WATCH_EVENT:
                assert (message.req_id, message.tx_id) == (0, 0)
                shown.append(text[:-1].replace("\0", "|"))
            else:
                shown.append("=" + text.rstrip("\0"))
        return shown

    def answer(self, kind: int, payload: bytes, tx: int = 0) -> Message:
        """The only message that a request brings."""
        self.raw(encode(kind, 77, tx, payload))
        (message,) = self.messages()
        assert (message.req_id, message.tx_id) == (77, tx)
        assert message.type in (kind, xs.XS_ERROR)
        return message

    def ok(self, kind: int, *strings: str, value: bytes = b"", tx: int = 0) -> bytes:
        message = self.answer(kind, join(*strings) + value, tx)
        assert message.type == kind, message
        return message.payload

    def refused(self, kind: int, *strings: str, value: bytes = b"", tx: int = 0) -> str:
        message = self.answer(kind, join(*strings) + value, tx)
        assert message.type == xs.XS_ERROR, message
        assert message.payload.endswith(b"\0")
        return message.payload[:-1].decode()

    # what tests do all the time

    def read(self, path: str, tx: int = 0) -> bytes:
        return self.ok(xs.XS_READ, path, tx=tx)

    def write(self, path: str, value: str | bytes = b"", tx: int = 0) -> None:
        data = value.encode() if isinstance(value, str) else value
        self.send(xs.XS_WRITE, path, value=data, tx=tx)
        assert self.shown()[-1] == "=OK"

    def perms(self, path: str, *entries: str, tx: int = 0) -> None:
        self.send(xs.XS_SET_PERMS, path, *entries, tx=tx)
        assert self.shown()[-1] == "=OK"

    def rm(self, path: str, tx: int = 0) -> None:
        self.send(xs.XS_RM, path, tx=tx)
        assert self.shown()[-1] == "=OK"

    def list(self, path: str, tx: int = 0) -> list[str]:
        return self.ok(xs.XS_DIRECTORY, path, tx=tx).decode().split("\0")[:-1]

    def watch(self, path: str, token: str) -> None:
        assert self.exchange(xs.XS_WATCH, path, token) == ["=OK", f"{path}|{token}"]

    def start(self) -> int:
        return int(self.ok(xs.XS_TRANSACTION_START, "")[:-1])

    def end(self, tx: int, word: str = "T") -> str:
        """The reply to TRANSACTION_END; events before it are dropped."""
        self.send(xs.XS_TRANSACTION_END, word, tx=tx)
        return self.shown()[-1]

    def generation(self, path: str) -> int:
        return int(self.ok(xs.XS_DIRECTORY_PART, path, "0").split(b"\0")[0])


class World:
    """A server, the domains that exist, and their clients.  It is also the server's transport."""

    def __init__(self, **quotas: int) -> None:
        self.existing = set(range(10))
        self.attached: list[int] = []
        self.detached: list[int] = []
        self.rebound: list[tuple[int, int]] = []
        self.printed: list[str] = []
        self.server = Server(self, Quotas(**quotas), log=self.printed.append)
        self.dom0 = self.client()

    def exists(self, domid: int) -> bool:
        return domid in self.existing

    def attach(self, connection: Connection, mfn: int, port: int) -> bytes | None:
        if not self.exists(connection.id):
            return b"ENOENT\0"
        if port >= 1 << 17:
            return b"EINVAL\0"
        self.attached.append(connection.id)
        return None

    def rebind(self, connection: Connection, port: int) -> None:
        self.rebound.append((connection.id, port))

    def detach(self, connection: Connection) -> None:
        self.detached.append(connection.id)

    def client(self) -> Client:
        return Client(self.server, self.server.connect())

    def guest(self, domid: int, *, home: bool = True) -> Client:
        """Introduce a domain; give it a home of its own."""
        connection = self.server.introduce(domid, 1000, 2)
        assert connection is not None
        if home:
            self.dom0.write(f"/local/domain/{domid}")
            self.dom0.perms(f"/local/domain/{domid}", f"n{domid}")
        return Client(self.server, connection)

    def die(self, domid: int) -> None:
        self.existing.discard(domid)
        self.tell()

    def tell(self, **states: DomainState) -> None:
        """Xen has something to say; `d5=…` is the state of domain 5."""

        def state_of(domid: int) -> DomainState | None:
            return states.get(f"d{domid}", DomainState(False, False)) if domid in self.existing else None

        self.server.check_domains(state_of)

    def dump(self) -> dict[str, tuple[bytes, str, tuple[str, ...]]]:
        """The whole store: path → value, permissions, names."""
        return {
            path.decode(): (node.value, str(node.perms), tuple(node.children.decode().split("\0")[:-1]))
            for path, node in self.server.store.tree.walk()
        }

    def check(self) -> None:
        """Nothing is left that belongs to nobody, and the books agree with the store."""
        server = self.server
        assert inconsistencies(server) == []
        owned: dict[int, set[bytes]] = {}
        memory: dict[int, int] = {}
        for path, node in server.store.tree.walk():
            domid = server.domains.owner(node.perms.owner).domid
            owned.setdefault(domid, set()).add(path)
            size = 24 + 8 * len(node.perms.entries) + len(node.value) + len(node.children) + len(path)
            memory[domid] = memory.get(domid, 0) + size
        for connection in server.connections:
            for watch in connection.watches.values():
                assert watch in server.watches.by_path[watch.path]
                domid = connection.domain.domid
                memory[domid] = memory.get(domid, 0) + len(watch.path) + len(watch.token)
            for transaction in connection.transactions.values():
                domid = connection.domain.domid
                memory[domid] = memory.get(domid, 0) + transaction.charged
        assert len(server.watches) == sum(len(connection.watches) for connection in server.connections)
        for domain in server.domains:
            assert set(domain.nodes) == owned.get(domain.domid, set())
            assert domain.memory == memory.get(domain.domid, 0)
            mine = [c for c in server.connections if c.domain is domain]
            assert domain.watches == sum(len(c.watches) for c in mine)
            assert domain.transactions == sum(len(c.transactions) for c in mine)
