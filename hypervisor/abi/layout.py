"""C structures as objects: sizes, offsets and codecs of the structures in Xen's public headers.

A `Layout` is a `struct` and a `Union` a `union` of the native x86-64 ABI (System V psABI, section 3.1.2): little
endian, each member at the next multiple of its alignment, the whole padded to a multiple of the widest.  Members
are written as in C, type first::

    evtchn_send = Layout("evtchn_send", ("evtchn_port_t", "port"))
    sched_poll = Layout(
        "sched_poll",
        ("XEN_GUEST_HANDLE(evtchn_port_t)", "ports"),
        ("unsigned int", "nr_ports"),
        ("uint64_t", "timeout"),
    )

A third item makes an array, ``("uint64_t", "time", 4)``; 0 is a flexible array at the end.  ``"uint32_t:28"`` is a
bit field.  A member's type may be another `Layout` or `Union`.  ``max_align=4`` lays a structure out as a 32-bit x86
compiler does, whose 64-bit integers are aligned to 4 bytes.

`unpack_from` copies a structure out of shared memory in one go, into an object that the other side can no longer
change.  Arrays of single bytes become `bytes`, other arrays tuples, unions a `UnionValue`, which reads its
bytes as whichever member is asked for.  A member whose name is a Python keyword gets an underscore (``in`` is ``in_``),
and ``__pad`` is ``_pad``.

Hot paths use `Layout.codec`, the precompiled `struct.Struct` of the whole structure, with `offset` and `size`.
"""

import keyword
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import attrs

_PATH = re.compile(r"\.?(?P<name>[A-Za-z_]\w*)|\[(?P<index>\d+)\]")


@attrs.frozen
class Scalar:
    """An integer type: its C name, its `struct` format character and its size in bytes (also its alignment)."""

    name: str
    format: str
    size: int

    @property
    def align(self) -> int:
        """Return the alignment in bytes; for an integer on x86-64, the size."""
        return self.size


def _scalars() -> dict[str, Scalar]:
    """Return the integer types that the public headers use, C's own and Xen's, by C name."""
    formats = {
        "b": ("int8_t", "char"),
        "B": ("uint8_t", "unsigned char"),
        "h": ("int16_t", "short"),
        "H": ("uint16_t", "unsigned short", "domid_t", "grant_status_t"),
        "i": ("int32_t", "int"),
        "I": (
            "uint32_t",
            "unsigned int",
            "evtchn_port_t",
            "event_word_t",
            "grant_ref_t",
            "grant_handle_t",
            "RING_IDX",
            "xen_argo_port_t",
            "XENCONS_RING_IDX",
            "XENSTORE_RING_IDX",
        ),
        "q": ("int64_t", "long", "int64_aligned_t"),
        "Q": (
            "uint64_t",
            "unsigned long",
            "size_t",
            "uint64_aligned_t",
            "xen_pfn_t",
            "xen_ulong_t",
            "xen_callback_t",
            "tsc_timestamp_t",
        ),
    }
    return {name: Scalar(name, f, struct.calcsize("<" + f)) for f, names in formats.items() for name in names}


SCALARS = _scalars()
"""Every integer type that a member may have, by C name. Pointers and guest handles are 64-bit and not listed."""

_POINTER = "Q"

MemberType: TypeAlias = "str | Layout | Union"
MemberSpec: TypeAlias = "tuple[MemberType, str] | tuple[MemberType, str, int]"
Buffer: TypeAlias = "bytes | bytearray | memoryview"


@attrs.frozen
class Field:
    """One member: where it is and what it is. Offsets and sizes in bytes, `bits` as (shift, width) in its unit."""

    name: str
    type: "Scalar | Layout | Union"
    count: int | None
    offset: int
    size: int
    bits: tuple[int, int] | None = None

    @property
    def attribute(self) -> str:
        """Return the name of the attribute in unpacked values: the C name, unless Python has other plans for it.

        ``in`` becomes ``in_``, and ``__pad`` becomes ``_pad``: classes mangle names with two underscores.
        """
        if self.name.startswith("__"):
            return self.name[1:]
        return self.name + "_" if keyword.iskeyword(self.name) else self.name

    @property
    def is_bytes(self) -> bool:
        """Return whether the member is an array of single bytes, which unpacks to `bytes`."""
        return self.count is not None and isinstance(self.type, Scalar) and self.type.size == 1

    @property
    def format(self) -> str:
        """Return the `struct` format of the member, without the byte order."""
        if self.is_bytes:
            return f"{self.count}s"
        one = self.type.format
        if self.count is None:
            return one
        return f"{self.count}{one}" if isinstance(self.type, Scalar) else one * self.count


class Value:
    """An unpacked structure: a copy, with one attribute per member. Compares and prints by content."""

    __slots__ = ()
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    _layout: "Layout"

    def __repr__(self) -> str:
        members = ", ".join(f"{f.name}={_show(getattr(self, f.attribute))}" for f in self._layout.fields)
        return f"{self._layout.name}({members})"


class UnionValue:
    """An unpacked union: its bytes, read as the member that is asked for and rewritten by assignment to one."""

    __slots__ = ("_bytes", "_union")

    _bytes: bytes
    _union: "Union"

    def __init__(self, union: "Union", content: bytes) -> None:
        object.__setattr__(self, "_union", union)
        object.__setattr__(self, "_bytes", content)

    def __bytes__(self) -> bytes:
        return self._bytes

    def __getattr__(self, name: str) -> Any:
        field = self._union.by_attribute.get(name)
        if field is None:
            raise AttributeError(f"union {self._union.name} has no member {name}")
        return _unpack_member(field, self._bytes, 0)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, "_bytes", self._union.pack(**{name: value}))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnionValue):
            return NotImplemented
        return self._union is other._union and self._bytes == other._bytes

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self._union.name}({self._bytes.hex()})"


def _show(value: Any) -> str:
    """Format one member for a person: large numbers in hex, they are addresses, frames or masks."""
    if isinstance(value, int) and value > 0xFFFF:
        return hex(value)
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_show, value)) + ")"
    return repr(value)


def _resolve(spec: MemberType) -> "tuple[Scalar | Layout | Union, int | None]":
    """Return the type that a member's first item names, and the width if it is a bit field."""
    if not isinstance(spec, str):
        return spec, None
    name, _, width = spec.partition(":")
    if name.startswith("XEN_GUEST_HANDLE") or name.endswith("*"):
        return Scalar(name, _POINTER, 8), None
    scalar = SCALARS.get(name)
    if scalar is None:
        raise ValueError(f"{name!r} is no type of the public headers")
    return scalar, int(width) if width else None


def _round_up(offset: int, align: int) -> int:
    return -(-offset // align) * align


def _unpack_member(field: Field, buffer: Buffer, offset: int) -> Any:
    """Return one member of a structure or union that begins at `offset` of `buffer`."""
    at = offset + field.offset
    if isinstance(field.type, Scalar):
        items = struct.unpack_from("<" + field.format, buffer, at)
        if field.bits is not None:
            shift, width = field.bits
            return items[0] >> shift & (1 << width) - 1
        return items[0] if field.count is None or field.is_bytes else items
    if field.count is None:
        return field.type.unpack_from(buffer, at)
    return tuple(field.type.unpack_from(buffer, at + i * field.type.size) for i in range(field.count))


class _Compound:
    """What a structure and a union have in common: named members at known offsets."""

    name: str
    size: int
    align: int
    fields: tuple[Field, ...]

    @cached_property
    def by_name(self) -> dict[str, Field]:
        """The members by C name."""
        return {field.name: field for field in self.fields}

    @cached_property
    def by_attribute(self) -> dict[str, Field]:
        """The members by the name of their attribute in unpacked values."""
        return {field.attribute: field for field in self.fields}

    def member(self, path: str) -> Field:
        """Return the member at a path as C writes it, such as ``vcpu_info[3].time.version``.

        The offset in the result counts from the beginning of this structure; an index picks one element. Raises
        KeyError for a member that does not exist and IndexError for an element outside of the array (flexible
        arrays have no outside).
        """
        field = Field(self.name, self, None, 0, self.size)  # type: ignore[arg-type]
        end = 0
        for step in _PATH.finditer(path):
            if step.start() != end:
                break
            end = step.end()
            field = _element(field, int(step["index"])) if step["index"] else _child(field, step["name"])
        if end != len(path) or not path:
            raise KeyError(f"{self.name} has no member {path!r}")
        return field

    @cached_property
    def _offsets(self) -> dict[str, int]:
        return {}

    def offset(self, path: str) -> int:
        """Return the offset in bytes of a member, given by a path such as ``u.unbound.dom`` or ``head[3]``."""
        known = self._offsets.get(path)
        if known is None:
            known = self._offsets[path] = self.member(path).offset
        return known

    def walk(self) -> Iterator[tuple[str, Field]]:
        """Yield (path, member) for every member at every depth; of an array, the whole, its first and its last."""
        for field in self.fields:
            yield from _walk(field.name, field)


def _child(parent: Field, name: str) -> Field:
    if isinstance(parent.type, Scalar) or parent.count is not None or name not in parent.type.by_name:
        raise KeyError(f"{parent.name} has no member {name!r}")
    child = parent.type.by_name[name]
    return attrs.evolve(child, offset=parent.offset + child.offset)


def _element(array: Field, index: int) -> Field:
    if array.count is None:
        raise KeyError(f"{array.name} is no array")
    if array.count and index >= array.count:
        raise IndexError(f"{array.name} has {array.count} elements, not {index + 1}")
    size = array.type.size
    return attrs.evolve(array, count=None, offset=array.offset + index * size, size=size)


def _walk(path: str, field: Field) -> Iterator[tuple[str, Field]]:
    yield path, field
    if field.count:
        for index in sorted({0, field.count - 1}):
            yield from _walk(f"{path}[{index}]", _element(field, index))
    elif field.count is None and not isinstance(field.type, Scalar):
        for child in field.type.fields:
            yield from _walk(f"{path}.{child.name}", _child(field, child.name))


class Union(_Compound):
    """A C union: members that share their bytes."""

    def __init__(self, name: str, *members: MemberSpec, max_align: int = 8) -> None:
        self.name = name
        fields = []
        align = 1
        for spec in members:
            kind, width = _resolve(spec[0])
            if width is not None:
                raise ValueError(f"union {name}: bit fields in unions are not used by the public headers")
            count = spec[2] if len(spec) == 3 else None
            align = max(align, min(kind.align, max_align))
            fields.append(Field(spec[1], kind, count, 0, kind.size * (1 if count is None else count)))
        self.fields = tuple(fields)
        self.align = align
        self.size = _round_up(max((field.size for field in fields), default=0), align)

    @property
    def format(self) -> str:
        """Return the `struct` format: a union is opaque bytes to a flat codec."""
        return f"{self.size}s"

    def pack(self, content: "UnionValue | Buffer | None" = None, /, **members: Any) -> bytes:
        """Return the bytes of the union with at most one member given; what it does not cover is zero."""
        if content is not None:
            return bytes(content)[: self.size].ljust(self.size, b"\0")
        if len(members) > 1:
            raise TypeError(f"union {self.name} holds one member at a time, not {', '.join(members)}")
        buffer = bytearray(self.size)
        for name, value in members.items():
            field = self.by_attribute.get(name)
            if field is None:
                raise TypeError(f"union {self.name} has no member {name}")
            items: list[Any] = []
            _to_items(field, value, items)
            struct.pack_into("<" + field.format, buffer, 0, *items)
        return bytes(buffer)

    def unpack_from(self, buffer: Buffer, offset: int = 0) -> UnionValue:
        """Copy the union out of `buffer` at `offset`. Raises struct.error when the buffer is too short."""
        content = bytes(buffer[offset : offset + self.size])
        if len(content) != self.size:
            raise struct.error(f"union {self.name} needs {self.size} bytes at offset {offset}")
        return UnionValue(self, content)

    def __repr__(self) -> str:
        return f"<union {self.name}, {self.size} bytes>"


class Layout(_Compound):
    """A C structure. Members are tuples (type, name) or (type, name, length); see the module's description."""

    def __init__(self, name: str, *members: MemberSpec, max_align: int = 8) -> None:
        self.name = name
        fields: list[Field] = []
        align = 1
        end = 0  # in bits: bit fields share bytes
        for spec in members:
            kind, width = _resolve(spec[0])
            count = spec[2] if len(spec) == 3 else None
            kind_align = min(kind.align, max_align)
            align = max(align, kind_align)
            if width is None:
                offset = _round_up(-(-end // 8), kind_align)
                field = Field(spec[1], kind, count, offset, kind.size * (1 if count is None else count))
                end = 8 * (offset + field.size)
            else:
                unit = 8 * kind.size
                if end // unit != (end + width - 1) // unit:
                    end = _round_up(end, unit)
                field = Field(spec[1], kind, None, end // unit * kind.size, kind.size, (end % unit, width))
                end += width
            fields.append(field)
        self.fields = tuple(fields)
        self.align = align
        self.size = _round_up(-(-end // 8), align)

    @cached_property
    def format(self) -> str:
        """The `struct` format of the whole structure, pads included and without the byte order."""
        parts = []
        end = 0
        for field in self.fields:
            if field.bits is not None and field.offset < end:
                continue  # shares the unit of the bit field before it
            if field.offset != end:
                parts.append(f"{field.offset - end}x")
            parts.append(field.format)
            end = field.offset + field.size
        if self.size != end:
            parts.append(f"{self.size - end}x")
        return "".join(parts)

    @cached_property
    def codec(self) -> struct.Struct:
        """The compiled codec: one item per integer, nested structures flattened, unions and byte arrays as bytes."""
        return struct.Struct("<" + self.format)

    @cached_property
    def _plain(self) -> bool:
        """Whether each member is exactly one item of the codec and needs no further decoding."""
        return all(
            isinstance(field.type, Scalar) and field.bits is None and (field.count is None or field.is_bytes)
            for field in self.fields
        )

    @cached_property
    def value_class(self) -> type[Value]:
        """The class of unpacked values (made on first use): slots, one per member."""
        names = {field.attribute: attrs.field(alias=field.attribute) for field in self.fields}
        made: type[Value] = attrs.make_class(self.name, names, bases=(Value,), slots=True, repr=False, eq=True)
        made._layout = self
        return made

    @cached_property
    def _zeros(self) -> dict[str, Any]:
        """What is packed for each member that is not given, in order."""
        return {field.attribute: 0 if self._is_item(field) else None for field in self.fields}

    @cached_property
    def _numbers_only(self) -> bool:
        return all(map(self._is_item, self.fields))

    @cached_property
    def _zero_items(self) -> tuple[Any, ...]:
        """What the codec packs for a structure of zeros."""
        return self.codec.unpack(bytes(self.size))

    @cached_property
    def _packing(self) -> "tuple[tuple[str, bool, tuple[Any, ...] | None, Field], ...]":
        """For each field: attribute, is it a number, items if not given (None: a bit field shares one), field."""
        return tuple(
            (field.attribute, self._is_item(field), None if field.bits is not None else _zero_items(field), field)
            for field in self.fields
        )

    @cached_property
    def _unpacking(self) -> "tuple[_Part, ...]":
        """How to make each member out of the codec's items."""
        parts = []
        at, unit = 0, -1
        for field in self.fields:
            if field.bits is not None:
                if field.offset != unit:
                    unit, at = field.offset, at + 1
                parts.append(_Part(at - 1, at, field.type, field.bits, array=False))
                continue
            size = len(_zero_items(field))
            array = field.count is not None and not field.is_bytes
            parts.append(_Part(at, at + size, field.type, None, array=array))
            at += size
        return tuple(parts)

    @staticmethod
    def _is_item(field: Field) -> bool:
        return isinstance(field.type, Scalar) and field.count is None and field.bits is None

    def unpack_from(self, buffer: Buffer, offset: int = 0) -> Value:
        """Copy the structure out of `buffer` at `offset`, each byte once. Raises struct.error when it is too short."""
        items = self.codec.unpack_from(buffer, offset)
        if self._plain:
            return self.value_class(*items)
        return self._from_items(items)

    def unpack(self, buffer: Buffer) -> Value:
        """Return the structure that `buffer` begins with."""
        return self.unpack_from(buffer)

    def pack(self, value: Value | Mapping[str, Any] | None = None, /, **members: Any) -> bytes:
        """Return the bytes of the structure: `value` (if given) with `members` put over it, the rest zero.

        Nested structures may be given as values or as dictionaries, unions as bytes, values or a dictionary of one
        member. Raises TypeError for a member that does not exist, struct.error for a number that does not fit.
        """
        return self.codec.pack(*self._items(value, members))

    @cached_property
    def padding(self) -> tuple[int, ...]:
        """The offsets of bytes that belong to no member."""
        ones = self.pack(self.unpack_from(b"\xff" * self.size))
        return tuple(at for at, byte in enumerate(ones) if byte != 0xFF)

    def pack_over(self, raw: Buffer, value: Value | Mapping[str, Any] | None = None, /, **members: Any) -> bytes:
        """Return the bytes of the structure as it is copied back to who gave it as `raw`: padding keeps its bytes."""
        packed = self.pack(value, **members)
        if not self.padding:
            return packed
        patched = bytearray(packed)
        for at in self.padding:
            patched[at] = memoryview(raw)[at]
        return bytes(patched)

    def pack_into(
        self,
        buffer: bytearray | memoryview,
        offset: int,
        value: Value | Mapping[str, Any] | None = None,
        /,
        **members: Any,
    ) -> None:
        """Write the whole structure at `offset` of `buffer`; arguments as for `pack`."""
        self.codec.pack_into(buffer, offset, *self._items(value, members))

    def _items(self, value: Value | Mapping[str, Any] | None, members: Mapping[str, Any]) -> Iterable[Any]:
        if value is not None:
            if not isinstance(value, Mapping):
                value = {name: getattr(value, name) for name in self._zeros}
            members = {**value, **members}
        given = {**self._zeros, **members}
        if len(given) != len(self._zeros):
            unknown = ", ".join(name for name in members if name not in self._zeros)
            raise TypeError(f"struct {self.name} has no member {unknown}")
        if self._numbers_only:
            return given.values()
        items: list[Any] = []
        self._fill_items(given, items)
        return items

    def _fill_items(self, given: Mapping[str, Any], items: list[Any]) -> None:
        unit = -1
        for attribute, is_item, zeros, field in self._packing:
            value = given[attribute]
            if is_item:
                items.append(0 if value is None else value)
                continue
            if zeros is not None:
                if value is None:
                    items.extend(zeros)
                else:
                    _to_items(field, value, items)
                continue
            assert field.bits is not None
            shift, width = field.bits
            bits = value or 0
            if not 0 <= bits < 1 << width:
                raise struct.error(f"struct {self.name}: {field.name} has {width} bits, {bits} does not fit")
            if field.offset != unit:
                unit = field.offset
                items.append(0)
            items[-1] |= bits << shift

    def _from_items(self, items: tuple[Any, ...]) -> Value:
        if self._plain:
            return self.value_class(*items)
        values: list[Any] = []
        for first, end, kind, bits, array in self._unpacking:
            if bits is not None:
                shift, width = bits
                values.append(items[first] >> shift & (1 << width) - 1)
            elif not array:
                values.append(_from_items(kind, items[first:end]) if isinstance(kind, _Compound) else items[first])
            elif isinstance(kind, Scalar):
                values.append(items[first:end])
            else:
                size = len(kind._zero_items) if isinstance(kind, Layout) else 1
                values.append(tuple([_from_items(kind, items[at : at + size]) for at in range(first, end, size)]))
        return self.value_class(*values)

    def __repr__(self) -> str:
        return f"<struct {self.name}, {self.size} bytes>"


class _Part(NamedTuple):
    """Which items of a codec are one member, and what is made of them."""

    first: int
    end: int
    kind: "Scalar | Layout | Union"
    bits: tuple[int, int] | None
    array: bool


def _zero_items(field: Field) -> tuple[Any, ...]:
    """Return what a codec packs for a member of zeros that is no bit field."""
    if field.is_bytes:
        return (b"",)
    one = field.type._zero_items if isinstance(field.type, Layout) else (0,)
    if isinstance(field.type, Union):
        one = (b"",)
    return one if field.count is None else one * field.count


def _from_items(kind: "Scalar | Layout | Union", items: tuple[Any, ...]) -> Any:
    """Return one value of type `kind` from its items of a codec."""
    if isinstance(kind, Layout):
        return kind._from_items(items)
    return UnionValue(kind, items[0]) if isinstance(kind, Union) else items[0]


def _to_bytes(field: Field, value: Any) -> bytes:
    """Return the bytes of an array of single bytes, which may be given as any iterable of numbers 0..255."""
    if value is None:
        return b""
    if isinstance(value, int):
        raise TypeError(f"{field.name} is an array of {field.size} bytes, not a number")
    content = bytes(value)
    if len(content) > field.size:
        raise struct.error(f"{field.name} has {field.size} bytes, {len(content)} do not fit")
    return content


def _to_items(field: Field, value: Any, items: list[Any]) -> None:
    """Append what the codec needs for one member; None stands for zeros, short arrays are filled with zeros."""
    if field.is_bytes:
        items.append(_to_bytes(field, value))
        return
    if field.count is None:
        _append(field.type, value, items)
        return
    elements: Iterable[Any] = () if value is None else value
    given = tuple(elements)
    if len(given) > field.count:
        raise struct.error(f"{field.name} has {field.count} elements, {len(given)} do not fit")
    for element in given + (None,) * (field.count - len(given)):
        _append(field.type, element, items)


def _append(kind: "Scalar | Layout | Union", value: Any, items: list[Any]) -> None:
    if isinstance(kind, Scalar):
        items.append(0 if value is None else value)
    elif isinstance(kind, Layout):
        items.extend(kind._items(value, {}))
    elif isinstance(value, Mapping):
        items.append(kind.pack(**value))
    else:
        items.append(kind.pack(value))
