"""Finding and changing nodes on behalf of a client: its rights, its quotas, and what goes with a change.

Everything works on a `View`, the store or a transaction's.  All checks come before the first change.
"""

from typing import TYPE_CHECKING

from backends.xenstored.connection import Connection
from backends.xenstored.domains import Domain
from backends.xenstored.errors import EACCES, EINVAL, EIO, ENOENT, ENOMEM, ENOSPC, StoreError
from backends.xenstored.paths import is_valid
from backends.xenstored.permissions import Permissions
from backends.xenstored.store import View, size_of
from backends.xenstored.transactions import Transaction
from backends.xenstored.tree import Node, child_of, parent_of, without_child

if TYPE_CHECKING:
    from backends.xenstored.server import Server


# ---- finding nodes


def find(server: "Server", connection: Connection, view: View, name: bytes | None, want: int) -> tuple[bytes, Node]:
    """Return the path and node that a client means.  Raises StoreError as `search`, or ENOENT."""
    if name is None:
        raise StoreError(ENOENT)
    path, node = search(server, connection, view, name, want)
    if node is None:
        raise StoreError(ENOENT)
    return path, node


def search(server: "Server", connection: Connection, view: View, name: bytes, want: int) -> tuple[bytes, Node | None]:
    """Return path and node, or None for the node if there is none and the client may know that.

    Raises EINVAL for a name that cannot be, EACCES without the right: to the node or, if there is none, to the
    nearest directory above that is there.
    """
    path = connection.absolute(name)
    limit = (connection.domain.quotas or server.quotas).path_max
    # A node that is there has a good name; in a transaction the very look at it would count.
    node = view.get(path) if view is server.store else None
    if (node is None or len(path) > limit) and not is_valid(path, limit):
        raise StoreError(EINVAL)
    if view is not server.store:
        node = view.get(path)
    if node is not None and (connection.privileged or connection.rights(node) & want == want):
        return path, node
    nearest = _nearest(view, path)
    if connection.privileged or (node is None and connection.rights(nearest) & want):
        return path, None
    raise StoreError(EACCES)


def _nearest(view: View, path: bytes) -> Node:
    """Return the nearest directory above `path` that is there.  In a transaction every look counts."""
    while path != b"/":
        path = parent_of(path)
        node = view.get(path)
        if node is not None:
            return node
    node = view.get(b"/")
    assert node is not None, "there is always a root"
    return node


# ---- changing nodes


def check_size(
    server: "Server",
    connection: Connection,
    view: View,
    path: bytes,
    size: int,
    owner: int,
    more: dict[Domain, int] | None = None,
) -> None:
    """Raise ENOSPC or ENOMEM if a guest may not make a node this large; a transaction is done for then.

    `size`: as of `size_of`. `more`: what this request is about to make others pay; this node is added.
    """
    if connection.privileged:
        return
    quotas = server.limits(connection.domain)
    if size >= quotas.node_size:
        view.refused()
        raise StoreError(ENOSPC)
    payer, paid, key = view.bill(path, owner)
    change = size + key - paid
    if more is not None:
        change += more.get(payer, 0)
    limit = server.limits(payer).memory
    if payer.domid and limit and payer.memory_used + change >= limit and not payer.given_up:
        view.refused()
        raise StoreError(ENOMEM)
    if more is not None:
        more[payer] = change


def create(server: "Server", connection: Connection, view: View, path: bytes, value: bytes) -> None:
    """Make a node and what is missing above it.  All checks come before the first change."""
    missing = [path]
    above = parent_of(path)
    base = view.get(above)
    while base is None:
        missing.append(above)
        above = parent_of(above)
        base = view.get(above)
    perms = kept = server.domains.current(base.perms, base.generation)
    if not connection.privileged:
        perms = perms.owned_by(connection.id)
        _check_creation(server, connection, view, missing, value, base, perms)
    # From the leaf up: the daemon writes the new node, then each directory that gets a new name.
    below = b""
    for name in missing:
        view.put(name, None, value, below, perms)
        value = b""
        below = name[name.rindex(b"/") + 1 :] + b"\0"
    view.put(above, base, base.value, base.children + below, kept)


def _check_creation(
    server: "Server",
    connection: Connection,
    view: View,
    missing: list[bytes],
    value: bytes,
    base: Node,
    perms: Permissions,
) -> None:
    # The daemon writes the leaf first and undoes what it wrote if a directory above is refused. All that remains
    # of this are the generations that it used.
    have = len(connection.domain.nodes)
    written = 0
    children = b""
    more: dict[Domain, int] = {}
    try:
        for number, name in enumerate(missing):
            # What a transaction makes is counted when it commits.
            if have + (number if view is server.store else 0) >= server.limits(connection.domain).nodes:
                raise StoreError(ENOSPC)
            check_size(server, connection, view, name, size_of(value, children, perms), perms.owner, more)
            value = b""
            children = name[name.rindex(b"/") + 1 :] + b"\0"
            written = number + 1
        above = parent_of(missing[-1])
        size = size_of(base.value, base.children, base.perms) + len(children)
        check_size(server, connection, view, above, size, base.perms.owner, more)
    except StoreError:
        for _ in range(written):
            server.store.take_generation()
        raise


def remove_tree(server: "Server", transaction: Transaction | None, path: bytes) -> None:
    """Remove a node and all below, children before parents, and tell the watches in that order.

    A transaction may see a directory from before and its children from after somebody else's change.  What does
    not fit together is refused where it is found (EINVAL, EIO); such a transaction cannot commit anyway.
    """
    view: View = transaction or server.store
    if view.get(parent_of(path)) is None:
        raise StoreError(EINVAL)
    #: Going down it holds a path to look at, going up a node whose children are gone.
    todo: list[tuple[bytes, bool]] = [(path, False)]
    while todo:
        at, done = todo.pop()
        node = view.get(at)
        if node is None:
            assert transaction is not None, f"{at!r} is in its parent's list"
            raise StoreError(EIO)
        if not done and node.children:
            todo.append((at, True))
            todo.extend((child_of(at, name), False) for name in reversed(node.names))
            continue
        server.changed(transaction, at, node, None, at != path)
        view.remove(at, node)
        if transaction is None and at != path:
            # The directory goes as well, so its list is not written; the daemon does, and uses a generation.
            server.store.take_generation()
            continue
        above = parent_of(at)
        parent = view.get(above)
        assert parent is not None, f"{above!r} holds {at!r}"
        names = without_child(parent.children, at[at.rindex(b"/") + 1 :])
        if names is None:
            assert transaction is not None, f"{at!r} is not in its parent's list"
            raise StoreError(EIO)
        kept = server.domains.current(parent.perms, parent.generation)
        view.put(above, parent, parent.value, names, kept)


def remove_owned(server: "Server", domain: Domain) -> None:
    """Remove the nodes of a domain, in the order in which a walk over the whole store would meet them.

    The root stays, and becomes dom0's.
    """
    owned = domain.nodes
    beneath: dict[bytes, dict[bytes, None]] = {}
    for path in owned:
        while path != b"/":
            above = parent_of(path)
            siblings = beneath.setdefault(above, {})
            if path in siblings:
                break
            siblings[path] = None
            path = above
    root = server.store.get(b"/")
    if root is not None and b"/" in owned:
        server.store.put(b"/", root, root.value, root.children, root.perms.owned_by(0))
    todo = [b"/"]
    while todo:
        path = todo.pop()
        if path in owned and path != b"/":
            remove_tree(server, None, path)
            continue
        below = beneath.get(path)
        if below is None:
            continue
        if len(below) > 1:
            node = server.store.get(path)
            names = node.names if node is not None else []
            todo += [child for name in reversed(names) if (child := child_of(path, name)) in below]
        else:
            todo += below
