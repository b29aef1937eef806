"""Layout against ctypes, which places members by rules of its own making, and against itself, there and back."""

import ctypes
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.layout import SCALARS, Layout, Scalar, Union

CTYPES: dict[str, Any] = {
    "b": ctypes.c_int8,
    "B": ctypes.c_uint8,
    "h": ctypes.c_int16,
    "H": ctypes.c_uint16,
    "i": ctypes.c_int32,
    "I": ctypes.c_uint32,
    "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
}
MAX_ALIGN = (4, 8)

numbers = st.sampled_from(sorted(SCALARS))
lengths = st.none() | st.integers(1, 5)


def limits(kind: Scalar) -> tuple[int, int]:
    bits = 8 * kind.size
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if kind.format.islower() else (0, (1 << bits) - 1)


def compound(cls: Any, members: list[tuple[Any, int | None]], max_align: int) -> Any:
    specs = [(kind, f"m{i}") if n is None else (kind, f"m{i}", n) for i, (kind, n) in enumerate(members)]
    return cls(cls.__name__.lower(), *specs, max_align=max_align)


def kinds(max_align: int) -> st.SearchStrategy[Any]:
    """Types of members: numbers, and structures and unions of them."""

    def wrap(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        members = st.lists(st.tuples(inner, lengths), min_size=1, max_size=5)
        return st.builds(compound, st.sampled_from((Layout, Union)), members, st.just(max_align))

    return st.recursive(numbers, wrap, max_leaves=8)


def layouts_of(max_align: int) -> st.SearchStrategy[Layout]:
    members = st.lists(st.tuples(kinds(max_align), lengths), min_size=1, max_size=7)
    return st.builds(compound, st.just(Layout), members, st.just(max_align))


layouts = st.sampled_from(MAX_ALIGN).flatmap(layouts_of)


def as_ctypes(kind: Any, max_align: int) -> Any:
    """Return the ctypes type of the same declaration."""
    if isinstance(kind, Scalar):
        return CTYPES[kind.format]
    base = ctypes.Structure if isinstance(kind, Layout) else ctypes.Union
    fields = []
    for field in kind.fields:
        member = as_ctypes(field.type, max_align)
        fields.append((field.name, member if field.count is None else member * field.count))
    namespace: dict[str, Any] = {"_fields_": fields}
    if max_align != 8:
        namespace["_pack_"] = max_align
        namespace["_layout_"] = "ms"  # Python 3.14 wants to be told what _pack_ implies
    return type(kind.name, (base,), namespace)


def values(kind: Any, count: int | None = None) -> st.SearchStrategy[Any]:
    """Values that a member of type `kind` can be packed from."""
    if isinstance(kind, Scalar):
        if count is not None and kind.size == 1:
            return st.binary(max_size=count)
        one: st.SearchStrategy[Any] = st.integers(*limits(kind))
    elif isinstance(kind, Layout):
        one = st.fixed_dictionaries({}, optional={f.name: values(f.type, f.count) for f in kind.fields})
    else:
        one = st.binary(min_size=kind.size, max_size=kind.size)
    return one if count is None else st.lists(one, max_size=count)


@given(st.sampled_from(MAX_ALIGN).flatmap(lambda align: st.tuples(layouts_of(align), st.just(align))))
def test_members_lie_where_ctypes_puts_them(case: tuple[Layout, int]) -> None:
    layout, max_align = case
    native = as_ctypes(layout, max_align)
    assert (layout.size, layout.align) == (ctypes.sizeof(native), ctypes.alignment(native))
    assert layout.codec.size == layout.size
    for path, field in layout.walk():
        at, end = native, 0
        for step in path.replace("[", ".[").split("."):
            if step.startswith("["):
                at = at._type_
                end += int(step[1:-1]) * ctypes.sizeof(at)
            else:
                end += getattr(at, step).offset
                at = dict(at._fields_)[step]
        assert (path, field.offset, field.size) == (path, end, ctypes.sizeof(at))
        assert layout.offset(path) == field.offset


@given(st.data(), layouts)
def test_what_is_packed_is_unpacked(data: st.DataObject, layout: Layout) -> None:
    given_members = data.draw(values(layout))
    packed = layout.pack(**given_members)
    assert len(packed) == layout.size
    value = layout.unpack(packed)
    assert layout.pack(value) == packed
    assert layout.unpack_from(b"\xff" * 3 + packed, 3) == value
    buffer = bytearray(b"\xee" * (layout.size + 5))
    layout.pack_into(buffer, 2, value)
    assert buffer == b"\xee\xee" + packed + b"\xee" * 3


@given(st.data(), layouts)
def test_any_bytes_of_a_hostile_guest_unpack_and_print(data: st.DataObject, layout: Layout) -> None:
    content = data.draw(st.binary(min_size=layout.size, max_size=layout.size))
    value = layout.unpack(content)
    assert repr(value).startswith("layout(")
    assert layout.unpack(layout.pack(value)) == value


@given(st.lists(st.tuples(st.sampled_from(("uint8_t", "uint32_t")), st.integers(1, 8)), min_size=1, max_size=20))
def test_bit_fields_lie_where_ctypes_puts_them(members: list[tuple[str, int]]) -> None:
    one_type = members[0][0]  # the public headers never mix types within a unit
    layout = Layout("bits", *((f"{one_type}:{width}", f"b{i}") for i, (_, width) in enumerate(members)))
    fields = [(f"b{i}", CTYPES[SCALARS[one_type].format], width) for i, (_, width) in enumerate(members)]
    native = type("bits", (ctypes.Structure,), {"_fields_": fields})
    assert layout.size == ctypes.sizeof(native)
    for i, (_, width) in enumerate(members):
        one = native()
        setattr(one, f"b{i}", (1 << width) - 1)
        packed = layout.pack(**{f"b{i}": (1 << width) - 1})
        assert packed == bytes(one)
        assert getattr(layout.unpack(packed), f"b{i}") == (1 << width) - 1
        with pytest.raises(struct.error, match=f"b{i} has {width} bits"):
            layout.pack(**{f"b{i}": 1 << width})


def test_attributes_of_members_with_reserved_names() -> None:
    page = Layout("page", ("char", "in", 4), ("uint32_t", "__pad"), ("uint8_t", "class"))
    value = page.unpack(page.pack(in_=b"abcd", _pad=7, class_=9))
    assert (value.in_, value._pad, value.class_) == (b"abcd", 7, 9)
    assert page.offset("in[2]") == 2
    assert repr(value) == "page(in=b'abcd', __pad=7, class=9)"


def test_unions_are_read_as_whichever_member_is_asked_for() -> None:
    number = Union("number", ("uint32_t", "word"), ("uint16_t", "half", 2), (Layout("b", ("uint8_t", "low")), "b"))
    outer = Layout("outer", (number, "u"), ("int8_t", "tail"))
    value = outer.unpack(outer.pack(u={"word": 0x01020304}, tail=-1))
    assert (value.u.word, value.u.half, value.u.b.low, value.tail) == (0x01020304, (0x0304, 0x0102), 4, -1)
    value.u.half = (7,)
    assert outer.pack(value) == b"\x07\0\0\0\xff\0\0\0"
    assert bytes(value.u) == b"\x07\0\0\0"
    assert value.u == outer.unpack(outer.pack(value)).u
    assert value.u != 7
    with pytest.raises(AttributeError, match="union number has no member wrod"):
        _ = value.u.wrod
    with pytest.raises(TypeError, match="one member at a time"):
        number.pack(word=1, half=(1, 2))
    with pytest.raises(TypeError, match="no member wrod"):
        number.pack(wrod=1)
    with pytest.raises(struct.error, match="needs 4 bytes"):
        number.unpack_from(b"\0\0\0")


def test_flexible_arrays_take_no_room_and_have_no_end() -> None:
    message = Layout("message", ("uint32_t", "length"), ("uint16_t", "data", 0))
    assert (message.size, message.offset("data"), message.offset("data[100]")) == (4, 4, 204)
    assert message.unpack(b"\x05\0\0\0").data == ()


def test_values_override_and_compare() -> None:
    point = Layout("point", ("int", "x"), ("int", "y"))
    a = point.unpack(point.pack(x=1, y=2))
    assert a == point.unpack(point.pack(a))
    assert a != point.unpack(point.pack(a, y=3))
    assert point.pack({"x": 1}, y=2) == point.pack(a)
    a.y = 70000
    assert repr(a) == "point(x=1, y=0x11170)"


def test_errors_name_the_structure_and_the_member() -> None:
    inner = Layout("inner", ("uint8_t", "byte"))
    outer = Layout("outer", (inner, "one"), (inner, "many", 3), ("uint16_t", "words", 2))
    with pytest.raises(TypeError, match="struct outer has no member two"):
        outer.pack(two=2)
    with pytest.raises(TypeError, match="struct inner has no member bite"):
        outer.pack(one={"bite": 2})
    with pytest.raises(KeyError, match=r"inner has no member|one has no member"):
        outer.offset("one.bite")
    for path in ("", "one.", "one[0]", "many.byte", "words[0].x", ".one!"):
        with pytest.raises(KeyError):
            outer.offset(path)
    with pytest.raises(IndexError, match="many has 3 elements"):
        outer.offset("many[3]")
    with pytest.raises(struct.error, match="words has 2 elements, 3 do not fit"):
        outer.pack(words=(1, 2, 3))
    with pytest.raises(struct.error):
        outer.unpack(b"\0")
    for name in (Layout("n", ("char", "text", 4)), Layout("n", ("char", "text", 4), ("int", "more", 2))):
        with pytest.raises(struct.error, match="text has 4 bytes, 5 do not fit"):
            name.pack(text=b"12345")
        with pytest.raises(TypeError, match="text is an array of 4 bytes, not a number"):
            name.pack(text=3)
    with pytest.raises(ValueError, match="'uint33_t' is no type"):
        Layout("bad", ("uint33_t", "x"))
    with pytest.raises(ValueError, match="bit fields in unions"):
        Union("bad", ("uint32_t:3", "x"))


def test_the_codec_of_a_flat_layout_has_an_item_per_number_and_pads_as_zeros() -> None:
    mixed = Layout("mixed", ("uint8_t", "a"), ("uint32_t", "b"), ("uint8_t", "c"))
    assert mixed.codec.format == "<B3xIB3x"
    assert mixed.codec.pack(1, 2, 3) == mixed.pack(a=1, b=2, c=3)
