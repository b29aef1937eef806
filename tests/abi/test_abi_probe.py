"""The C compiler confirms every constant, size, alignment and offset of hypervisor.abi.

One C program includes the installed public headers and prints what it finds for everything that the modules define,
found by introspection. What is in a module but not in C stands in a table here, with the reason or the C expression
that it must equal.
"""

from collections.abc import Iterator

import pytest
from xen_headers import (
    HEADERS,
    NOT_HEADERS,
    compile_and_run,
    constants,
    layouts,
    load,
    module_names,
    public,
    require_headers,
)

from hypervisor.abi.layout import SCALARS, Field, Layout, Scalar, Union

PROLOGUE = """
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#define __XEN_TOOLS__ 1
#include <xen/io/ring.h>
"""

# A 32-bit x86 compiler aligns 64-bit integers to 4 bytes and does all else as this one. So the header included once
# more, under other names and with alignments capped at 4, is the layout that a 32-bit frontend uses.
X86_32_NAMES = [
    f"blkif_{name}"
    for stem in ("request", "request_segment", "request_discard", "request_indirect", "response", "sring")
    for name in (stem, stem + "_t")
] + ["blkif_sring_entry", "blkif_front_ring", "blkif_front_ring_t", "blkif_back_ring", "blkif_back_ring_t"]
X86_32_BLKIF = "\n".join(
    (
        *(f"#define {name} {name.replace('blkif', 'blkif_x86_32')}" for name in X86_32_NAMES),
        "#undef __XEN_PUBLIC_IO_BLKIF_H__",
        "#pragma pack(push, 4)",
        "#include <xen/io/blkif.h>",
        "#pragma pack(pop)",
        *(f"#undef {name}" for name in X86_32_NAMES),
    )
)

IN_C: dict[str, str] = {
    "io.blkif.BLKIF_RING_SIZE": "__CONST_RING_SIZE(blkif, 4096)",
    "io.blkif.BLKIF_X86_32_RING_SIZE": "__CONST_RING_SIZE(blkif_x86_32, 4096)",
    "io.netif.NETIF_TX_RING_SIZE": "__CONST_RING_SIZE(netif_tx, 4096)",
    "io.netif.NETIF_RX_RING_SIZE": "__CONST_RING_SIZE(netif_rx, 4096)",
    "io.netif.XEN_NETIF_CTRL_RING_SIZE": "__CONST_RING_SIZE(xen_netif_ctrl, 4096)",
}
"""Constants of ours that no header names, and the C expression that they must equal."""

NOT_IN_C: dict[str, str] = {
    "errno.name": "looks a name up",
}
"""What has no counterpart in C, with the reason. Tables named *NAMES are made from constants and need no entry."""

XENCONS = "((struct xencons_interface *)0)"
CALLS: dict[str, list[tuple[str, tuple[int, ...]]]] = {
    "cpuid.XEN_CPUID_LEAF": [("XEN_CPUID_LEAF(2)", (2,))],
    "domctl.XEN_DOMCTL_GRANT_version": [("XEN_DOMCTL_GRANT_version(0x12)", (0x12,))],
    "io.console.MASK_XENCONS_IDX": [
        (f"MASK_XENCONS_IDX(5000, {XENCONS}->in)", (5000, 1024)),
        (f"MASK_XENCONS_IDX(5000, {XENCONS}->out)", (5000, 2048)),
    ],
    "io.usbif.usbif_pipebulk": [("usbif_pipebulk(0xc0000000u)", (0xC0000000,)), ("usbif_pipebulk(0u)", (0,))],
    "io.usbif.usbif_pipectrl": [("usbif_pipectrl(0x80000000u)", (0x80000000,)), ("usbif_pipectrl(0u)", (0,))],
    "io.usbif.usbif_pipedevice": [("usbif_pipedevice(0xdeadbeefu)", (0xDEADBEEF,))],
    "io.usbif.usbif_pipeendpoint": [("usbif_pipeendpoint(0xdeadbeefu)", (0xDEADBEEF,))],
    "io.usbif.usbif_pipein": [("usbif_pipein(0xdeadbeefu)", (0xDEADBEEF,)), ("usbif_pipein(0u)", (0,))],
    "io.usbif.usbif_pipeint": [("usbif_pipeint(0x40000000u)", (0x40000000,)), ("usbif_pipeint(0u)", (0,))],
    "io.usbif.usbif_pipeisoc": [("usbif_pipeisoc(0x40000000u)", (0x40000000,)), ("usbif_pipeisoc(0u)", (0,))],
    "io.usbif.usbif_pipeout": [("usbif_pipeout(0xdeadbeefu)", (0xDEADBEEF,)), ("usbif_pipeout(0u)", (0,))],
    "io.usbif.usbif_pipeportnum": [("usbif_pipeportnum(0xdeadbeefu)", (0xDEADBEEF,))],
    "io.usbif.usbif_pipesubmit": [("usbif_pipesubmit(0x20u)", (0x20,)), ("usbif_pipesubmit(0u)", (0,))],
    "io.usbif.usbif_pipetype": [("usbif_pipetype(0xdeadbeefu)", (0xDEADBEEF,))],
    "io.usbif.usbif_pipeunlink": [("usbif_pipeunlink(0x3fu)", (0x3F,))],
    "io.usbif.usbif_setportnum_pipe": [("usbif_setportnum_pipe(0xdeadbee0u, 9)", (0xDEADBEE0, 9))],
    "io.usbif.usbif_setunlink_pipe": [("usbif_setunlink_pipe(0x80000001u)", (0x80000001,))],
    "io.vscsiif.XEN_VSCSIIF_RSLT_HOST": [("XEN_VSCSIIF_RSLT_HOST(0x12345678)", (0x12345678,))],
    "io.vscsiif.XEN_VSCSIIF_RSLT_STATUS": [("XEN_VSCSIIF_RSLT_STATUS(0x12345678)", (0x12345678,))],
    "io.xs_wire.MASK_XENSTORE_IDX": [("MASK_XENSTORE_IDX(4242)", (4242,))],
    "memory.XENMEMF_address_bits": [("XENMEMF_address_bits(31)", (31,))],
    "memory.XENMEMF_get_address_bits": [("XENMEMF_get_address_bits(0x1234)", (0x1234,))],
    "memory.XENMEMF_node": [("XENMEMF_node(0)", (0,)), ("XENMEMF_node(3)", (3,))],
    "memory.XENMEMF_get_node": [("XENMEMF_get_node(0)", (0,)), ("XENMEMF_get_node(0x12345)", (0x12345,))],
    "memory.XENMEMF_exact_node": [("XENMEMF_exact_node(5)", (5,))],
    "memory.XENMEM_SHARING_OP_FIELD_IS_GREF": [
        ("XENMEM_SHARING_OP_FIELD_IS_GREF(7ULL)", (7,)),
        ("XENMEM_SHARING_OP_FIELD_IS_GREF(1ULL << 62)", (1 << 62,)),
    ],
    "memory.XENMEM_SHARING_OP_FIELD_GET_GREF": [
        ("XENMEM_SHARING_OP_FIELD_GET_GREF((1ULL << 62) + 9)", ((1 << 62) + 9,))
    ],
    "memory.XENMEM_resource_ioreq_server_frame_ioreq": [("XENMEM_resource_ioreq_server_frame_ioreq(4)", (4,))],
    "trace.TRC_HD_TO_EVENT": [("TRC_HD_TO_EVENT(0x9020f123)", (0x9020F123,))],
    "trace.TRC_HD_INCLUDES_CYCLE_COUNT": [
        ("TRC_HD_INCLUDES_CYCLE_COUNT(0x90000001)", (0x90000001,)),
        ("TRC_HD_INCLUDES_CYCLE_COUNT(0x10000001)", (0x10000001,)),
    ],
    "trace.TRC_HD_EXTRA": [("TRC_HD_EXTRA(0xb0000001)", (0xB0000001,))],
    "trace.TRC_PV_HYPERCALL_V2_ARG_32": [("TRC_PV_HYPERCALL_V2_ARG_32(3)", (3,))],
    "trace.TRC_PV_HYPERCALL_V2_ARG_64": [("TRC_PV_HYPERCALL_V2_ARG_64(4)", (4,))],
    "vcpu.xen_vcpu_physid_to_x86_apicid": [
        ("xen_vcpu_physid_to_x86_apicid(0x1122334455667788)", (0x1122334455667788,))
    ],
    "vcpu.xen_vcpu_physid_to_x86_acpiid": [
        ("xen_vcpu_physid_to_x86_acpiid(0x1122334455667788)", (0x1122334455667788,))
    ],
    "xen.xen_pfn_to_cr3": [("xen_pfn_to_cr3(0x12345)", (0x12345,))],
    "xen.xen_cr3_to_pfn": [("xen_cr3_to_pfn(0x12345678)", (0x12345678,))],
}
"""Functions that stand for function-like macros: the call in C, and the arguments that must give the same here."""


def c_name(module: str, name: str) -> str:
    """Return the C expression for one of our constants."""
    if f"{module}.{name}" in IN_C:
        return IN_C[f"{module}.{name}"]
    if module == "errno":
        return "XEN_" + name
    if module == "xen" and name.startswith("HYPERVISOR_") and "VIRT" not in name:
        return "__" + name
    return name


def c_type(layout: Layout | Union) -> str:
    if layout.name.endswith("_t"):
        return layout.name
    return ("union " if isinstance(layout, Union) else "struct ") + layout.name


def is_address(field: Field) -> bool:
    """Return whether a member is a pointer or guest handle, which C does not compare with numbers."""
    return isinstance(field.type, Scalar) and field.type.name not in SCALARS


def layout_facts(layout: Layout | Union) -> Iterator[tuple[str, str, int]]:
    """Yield (key, C expression, our value) for everything about a layout that is a constant expression in C."""
    kind = c_type(layout)
    yield f"sizeof {kind}", f"sizeof({kind})", layout.size
    yield f"alignof {kind}", f"_Alignof({kind})", layout.align
    for path, field in layout.walk():
        if field.bits is not None:
            continue
        member = f"(({kind} *)0)->{path}"
        yield f"offsetof {kind}.{path}", f"offsetof({kind}, {path})", field.offset
        if field.count != 0:  # a flexible array has no size in C
            yield f"sizeof {kind}.{path}", f"sizeof({member})", field.size
        if field.count is None and isinstance(field.type, Scalar) and not is_address(field):
            yield f"signed {kind}.{path}", f"((__typeof__({member}))-1 < 0)", int(field.type.format.islower())


def bit_fields(layout: Layout | Union) -> Iterator[Field]:
    if isinstance(layout, Layout):
        yield from (field for field in layout.fields if field.bits is not None)


def facts() -> list[tuple[str, str, int]]:
    """Return (key, C expression, our value) for everything numeric in all modules."""
    found = []
    for module in HEADERS:
        for name, value in constants(module).items():
            if isinstance(value, int):
                found.append((f"{module}.{name}", c_name(module, name), value))
        for layout in layouts(module).values():
            found += [(f"{module}: {key}", c, value) for key, c, value in layout_facts(layout)]
    for function, calls in CALLS.items():
        module, _, name = function.rpartition(".")
        found += [(f"{module}: {c}", c, getattr(load(module), name)(*arguments)) for c, arguments in calls]
    for scalar in SCALARS.values():
        found.append((f"sizeof {scalar.name}", f"sizeof({scalar.name})", scalar.size))
        found.append((f"signed {scalar.name}", f"(({scalar.name})-1 < 0)", int(scalar.format.islower())))
    return found


def strings() -> list[tuple[str, str]]:
    return [(module, name) for module in HEADERS for name, v in constants(module).items() if isinstance(v, str)]


def probe_source() -> str:
    """Return the C program: tables of numbers and strings, then code for what is no constant expression."""
    includes = "".join(f"#include <xen/{header}>\n" for headers in HEADERS.values() for header in headers)
    numbers = "".join(f"{{{(e)} < 0, {e}}},\n" for _, e, _ in facts())
    texts = "".join(f"{name},\n" for _, name in strings())
    bits = "".join(
        f"{{ {c_type(layout)} x; memset(&x, 0, sizeof x); x.{field.name} = ~0; hex(&x, sizeof x); }}\n"
        for module in HEADERS
        for layout in layouts(module).values()
        for field in bit_fields(layout)
    )
    return f"""{PROLOGUE}{includes}{X86_32_BLKIF}
static const struct {{ int negative; unsigned long long value; }} numbers[] = {{
{numbers}}};
static const char *const texts[] = {{
{texts}}};
static void hex(const void *p, size_t n) {{
    for (size_t i = 0; i < n; i++) printf("%02x", ((const unsigned char *)p)[i]);
    printf("\\n");
}}
int main(void) {{
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].negative) printf("%lld\\n", (long long)numbers[i].value);
        else printf("%llu\\n", numbers[i].value);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) printf("%s\\n", texts[i]);
    for (size_t i = 0; i < sizeof xsd_errors / sizeof *xsd_errors; i++) printf("%s ", xsd_errors[i].errstring);
    printf("\\n");
{bits}    return 0;
}}
"""


class Answers:
    """What the compiler said: numbers by key, strings by (module, name), errors of xenstore, bytes of bit fields."""

    def __init__(self, lines: list[str]) -> None:
        answer = iter(lines)
        self.numbers = {key: int(next(answer)) for key, _, _ in facts()}
        self.texts = {key: next(answer) for key in strings()}
        self.xsd_errors = tuple(next(answer).split())
        self.bits = [bytes.fromhex(line) for line in answer]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    require_headers()
    return Answers(compile_and_run(probe_source(), tmp_path_factory.mktemp("probe")).splitlines())


def test_every_module_is_probed_or_has_a_reason_not_to_be() -> None:
    assert set(module_names()) - set(NOT_HEADERS) == set(HEADERS)


@pytest.mark.parametrize("module", HEADERS)
def test_a_module_defines_only_what_can_be_probed(module: str) -> None:
    for name, value in public(module).items():
        if isinstance(value, bool) or not isinstance(value, int | str | Layout | Union):
            key = f"{module}.{name}"
            table = name.endswith("NAMES") or key == "io.xs_wire.XSD_ERRORS"
            assert table or key in CALLS or key in NOT_IN_C, f"{key} is probed by nothing"


@pytest.mark.parametrize("module", HEADERS)
def test_constants(answers: Answers, module: str) -> None:
    for name, value in constants(module).items():
        if isinstance(value, int):
            assert (name, value) == (name, answers.numbers[f"{module}.{name}"])
        else:
            assert (name, value) == (name, answers.texts[module, name])


@pytest.mark.parametrize("module", HEADERS)
def test_layouts(answers: Answers, module: str) -> None:
    for name, layout in layouts(module).items():
        assert layout.name == name
        for key, _, value in layout_facts(layout):
            assert (key, value) == (key, answers.numbers[f"{module}: {key}"])


def test_functions_give_what_the_macros_give(answers: Answers) -> None:
    checked = 0
    for function, calls in CALLS.items():
        module, _, name = function.rpartition(".")
        for c, arguments in calls:
            assert (c, getattr(load(module), name)(*arguments)) == (c, answers.numbers[f"{module}: {c}"])
            checked += 1
    assert checked >= len(CALLS)


def test_integer_types(answers: Answers) -> None:
    for scalar in SCALARS.values():
        assert (scalar.name, scalar.size) == (scalar.name, answers.numbers[f"sizeof {scalar.name}"])
        assert (scalar.name, scalar.format.islower()) == (scalar.name, answers.numbers[f"signed {scalar.name}"] == 1)


def test_bit_fields(answers: Answers) -> None:
    said = iter(answers.bits)
    checked = 0
    for module in HEADERS:
        for layout in layouts(module).values():
            for field in bit_fields(layout):
                assert isinstance(layout, Layout)
                assert field.bits is not None
                ours = layout.pack(**{field.name: (1 << field.bits[1]) - 1})
                assert (layout.name, field.name, ours) == (layout.name, field.name, next(said))
                checked += 1
    assert checked
    assert next(said, None) is None


def test_errors_that_xenstore_may_name(answers: Answers) -> None:
    assert answers.xsd_errors == load("io.xs_wire").XSD_ERRORS
