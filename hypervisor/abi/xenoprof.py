"""Profiling (xenoprof.h): the interface that OProfile uses to sample across domains."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

# xenoprof.h: operations.
XENOPROF_init = 0
XENOPROF_reset_active_list = 1
XENOPROF_reset_passive_list = 2
XENOPROF_set_active = 3
XENOPROF_set_passive = 4
XENOPROF_reserve_counters = 5
XENOPROF_counter = 6
XENOPROF_setup_events = 7
XENOPROF_enable_virq = 8
XENOPROF_start = 9
XENOPROF_stop = 10
XENOPROF_disable_virq = 11
XENOPROF_release_counters = 12
XENOPROF_shutdown = 13
XENOPROF_get_buffer = 14
XENOPROF_set_backtrace = 15
XENOPROF_get_ibs_caps = 16
XENOPROF_ibs_counter = 17
XENOPROF_last_op = 17

# Limits.
MAX_OPROF_EVENTS = 32
MAX_OPROF_DOMAINS = 25

XENOPROF_CPU_TYPE_SIZE = 64

# The shared buffer: a ring of samples. An escape code in place of an address announces something else.
event_log = Layout(
    "event_log",
    ("uint64_t", "eip"),
    ("uint8_t", "mode"),
    ("uint8_t", "event"),
)

XENOPROF_ESCAPE_CODE = 0xFFFFFFFFFFFFFFFF
XENOPROF_TRACE_BEGIN = 1

xenoprof_buf = Layout(
    "xenoprof_buf",
    ("uint32_t", "event_head"),
    ("uint32_t", "event_tail"),
    ("uint32_t", "event_size"),
    ("uint32_t", "vcpu_id"),
    ("uint64_t", "xen_samples"),
    ("uint64_t", "kernel_samples"),
    ("uint64_t", "user_samples"),
    ("uint64_t", "lost_samples"),
    (event_log, "event_log", 1),
)

# Arguments of operations.
xenoprof_init = Layout(
    "xenoprof_init",
    ("int32_t", "num_events"),
    ("int32_t", "is_primary"),
    ("char", "cpu_type", XENOPROF_CPU_TYPE_SIZE),
)

xenoprof_get_buffer = Layout(
    "xenoprof_get_buffer",
    ("int32_t", "max_samples"),
    ("int32_t", "nbuf"),
    ("int32_t", "bufsize"),
    ("uint64_t", "buf_gmaddr"),
)

xenoprof_counter = Layout(
    "xenoprof_counter",
    ("uint32_t", "ind"),
    ("uint64_t", "count"),
    ("uint32_t", "enabled"),
    ("uint32_t", "event"),
    ("uint32_t", "hypervisor"),
    ("uint32_t", "kernel"),
    ("uint32_t", "user"),
    ("uint64_t", "unit_mask"),
)

xenoprof_passive = Layout(
    "xenoprof_passive",
    ("uint16_t", "domain_id"),
    ("int32_t", "max_samples"),
    ("int32_t", "nbuf"),
    ("int32_t", "bufsize"),
    ("uint64_t", "buf_gmaddr"),
)

xenoprof_ibs_counter = Layout(
    "xenoprof_ibs_counter",
    ("uint64_t", "op_enabled"),
    ("uint64_t", "fetch_enabled"),
    ("uint64_t", "max_cnt_fetch"),
    ("uint64_t", "max_cnt_op"),
    ("uint64_t", "rand_en"),
    ("uint64_t", "dispatched_ops"),
)

NAMES = names(globals(), r"XENOPROF_(?!last_op)[a-z]\w*")
"""Operations by number."""
