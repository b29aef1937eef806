# ruff: noqa: E501 - a table: one row a line
"""Hypercalls in words: what the caller does, with which arguments, and where it is laid down.

`{0}` to `{4}` are the five argument registers. Where a hypercall takes a command, its words are the command's.
"""

from typing import Final

_EVENT: Final = "event_channel.h, "
_GRANT: Final = "grant_table.h, "
_MEMORY: Final = "memory.h, "
_SCHED: Final = "sched.h, "
_VCPU: Final = "vcpu.h, "
_PHYSDEV: Final = "physdev.h, "

OPERATIONS: Final[dict[str, tuple[str, str]]] = {
    # event channels
    "EVTCHNOP_bind_interdomain": ("binds a port of its own to one that another domain has offered", _EVENT + "EVTCHNOP_bind_interdomain"),
    "EVTCHNOP_bind_virq": ("binds a port to a virtual interrupt", _EVENT + "EVTCHNOP_bind_virq"),
    "EVTCHNOP_bind_pirq": ("binds a port to an interrupt line of a device", _EVENT + "EVTCHNOP_bind_pirq"),
    "EVTCHNOP_close": ("closes a port; the other end is unbound", _EVENT + "EVTCHNOP_close"),
    "EVTCHNOP_send": ("notifies the other end of a port", _EVENT + "EVTCHNOP_send"),
    "EVTCHNOP_status": ("asks what a port is bound to", _EVENT + "EVTCHNOP_status"),
    "EVTCHNOP_alloc_unbound": ("allocates a port that another domain may bind to", _EVENT + "EVTCHNOP_alloc_unbound"),
    "EVTCHNOP_bind_ipi": ("binds a port by which its vCPUs interrupt each other", _EVENT + "EVTCHNOP_bind_ipi"),
    "EVTCHNOP_bind_vcpu": ("has another vCPU told of a port's events", _EVENT + "EVTCHNOP_bind_vcpu"),
    "EVTCHNOP_unmask": ("unmasks a port and has Xen look whether it is pending", _EVENT + "EVTCHNOP_unmask"),
    "EVTCHNOP_reset": ("closes all ports of a domain", _EVENT + "EVTCHNOP_reset"),
    "EVTCHNOP_init_control": ("gives Xen the control block of a vCPU: its events come in FIFO queues", _EVENT + "EVTCHNOP_init_control"),
    "EVTCHNOP_expand_array": ("adds a page of event words", _EVENT + "EVTCHNOP_expand_array"),
    "EVTCHNOP_set_priority": ("sets the priority of a port", _EVENT + "EVTCHNOP_set_priority"),
    "event_channel_op": ("asks for something about event channels", "event_channel.h"),
    # grants
    "GNTTABOP_map_grant_ref": ("maps {2} granted pages", _GRANT + "GNTTABOP_map_grant_ref"),
    "GNTTABOP_unmap_grant_ref": ("unmaps {2} granted pages", _GRANT + "GNTTABOP_unmap_grant_ref"),
    "GNTTABOP_setup_table": ("asks for the frames of its grant table", _GRANT + "GNTTABOP_setup_table"),
    "GNTTABOP_dump_table": ("asks Xen to print a grant table", _GRANT + "GNTTABOP_dump_table"),
    "GNTTABOP_transfer": ("gives {2} pages away", _GRANT + "GNTTABOP_transfer"),
    "GNTTABOP_copy": ("has Xen copy {2} pieces of pages, granted ones among them", _GRANT + "GNTTABOP_copy"),
    "GNTTABOP_query_size": ("asks how large a grant table is", _GRANT + "GNTTABOP_query_size"),
    "GNTTABOP_unmap_and_replace": ("unmaps {2} granted pages and puts others in their place", _GRANT + "GNTTABOP_unmap_and_replace"),
    "GNTTABOP_set_version": ("chooses the version of its grant table", _GRANT + "GNTTABOP_set_version"),
    "GNTTABOP_get_status_frames": ("asks for the status frames of a grant table", _GRANT + "GNTTABOP_get_status_frames"),
    "GNTTABOP_get_version": ("asks for the version of a grant table", _GRANT + "GNTTABOP_get_version"),
    "GNTTABOP_swap_grant_ref": ("exchanges grant entries", _GRANT + "GNTTABOP_swap_grant_ref"),
    "GNTTABOP_cache_flush": ("flushes caches of granted pages", _GRANT + "GNTTABOP_cache_flush"),
    "grant_table_op": ("asks for something about grants", "grant_table.h"),
    # memory
    "XENMEM_increase_reservation": ("asks for more memory", _MEMORY + "XENMEM_increase_reservation"),
    "XENMEM_decrease_reservation": ("gives memory back", _MEMORY + "XENMEM_decrease_reservation"),
    "XENMEM_populate_physmap": ("fills places of its pseudo-physical memory with machine frames", _MEMORY + "XENMEM_populate_physmap"),
    "XENMEM_exchange": ("exchanges frames for others, contiguous ones for instance", _MEMORY + "XENMEM_exchange"),
    "XENMEM_current_reservation": ("asks how much memory a domain has", _MEMORY + "XENMEM_current_reservation"),
    "XENMEM_maximum_reservation": ("asks how much memory a domain may have", _MEMORY + "XENMEM_maximum_reservation"),
    "XENMEM_memory_map": ("asks for its memory map", _MEMORY + "XENMEM_memory_map"),
    "XENMEM_machine_memory_map": ("asks for the machine's memory map", _MEMORY + "XENMEM_machine_memory_map"),
    "XENMEM_machphys_mapping": ("asks where the machine-to-physical table is", _MEMORY + "XENMEM_machphys_mapping"),
    "XENMEM_add_to_physmap": ("puts a frame into a place of a domain's memory", _MEMORY + "XENMEM_add_to_physmap"),
    "XENMEM_acquire_resource": ("asks for frames of Xen's that belong to a domain", _MEMORY + "XENMEM_acquire_resource"),
    "memory_op": ("asks for something about memory", "memory.h"),
    # page tables
    "mmu_update": ("changes {1} entries of page tables", "xen.h, HYPERVISOR_mmu_update"),
    "mmuext_op": ("asks for {1} operations on page tables: pinning, base pointers, TLB, LDT", "xen.h, HYPERVISOR_mmuext_op"),
    "update_va_mapping": ("changes what is mapped at {0:#x}", "xen.h, HYPERVISOR_update_va_mapping"),
    "update_va_mapping_otherdomain": ("maps a frame of another domain at {0:#x}", "xen.h, HYPERVISOR_update_va_mapping_otherdomain"),
    "set_gdt": ("gives Xen the frames of its GDT", "arch-x86/xen.h; xen.h, HYPERVISOR_set_gdt"),
    "update_descriptor": ("changes a segment descriptor", "xen.h, HYPERVISOR_update_descriptor"),
    # processors and time
    "SCHEDOP_yield": ("gives the processor up, and could go on", _SCHED + "SCHEDOP_yield"),
    "SCHEDOP_block": ("waits until an event is pending", _SCHED + "SCHEDOP_block"),
    "SCHEDOP_shutdown": ("shuts itself down", _SCHED + "SCHEDOP_shutdown"),
    "SCHEDOP_poll": ("waits for one of some ports, without an upcall", _SCHED + "SCHEDOP_poll"),
    "SCHEDOP_remote_shutdown": ("declares another domain shut down", _SCHED + "SCHEDOP_remote_shutdown"),
    "SCHEDOP_shutdown_code": ("says why it is about to shut down", _SCHED + "SCHEDOP_shutdown_code"),
    "SCHEDOP_watchdog": ("sets or feeds a watchdog", _SCHED + "SCHEDOP_watchdog"),
    "SCHEDOP_pin_override": ("pins itself to a processor for a moment", _SCHED + "SCHEDOP_pin_override"),
    "sched_op": ("asks for something about scheduling", "sched.h"),
    "VCPUOP_initialise": ("says how vCPU {1} is to begin", _VCPU + "VCPUOP_initialise"),
    "VCPUOP_up": ("brings vCPU {1} up", _VCPU + "VCPUOP_up"),
    "VCPUOP_down": ("takes vCPU {1} down", _VCPU + "VCPUOP_down"),
    "VCPUOP_is_up": ("asks whether vCPU {1} is up", _VCPU + "VCPUOP_is_up"),
    "VCPUOP_get_runstate_info": ("asks how long vCPU {1} has run and waited", _VCPU + "VCPUOP_get_runstate_info"),
    "VCPUOP_register_runstate_memory_area": ("has Xen keep the runstate of vCPU {1} in its memory", _VCPU + "VCPUOP_register_runstate_memory_area"),
    "VCPUOP_set_periodic_timer": ("starts the periodic timer of vCPU {1}", _VCPU + "VCPUOP_set_periodic_timer"),
    "VCPUOP_stop_periodic_timer": ("stops the periodic timer of vCPU {1}", _VCPU + "VCPUOP_stop_periodic_timer"),
    "VCPUOP_set_singleshot_timer": ("sets the timer of vCPU {1} for once", _VCPU + "VCPUOP_set_singleshot_timer"),
    "VCPUOP_stop_singleshot_timer": ("stops the timer of vCPU {1}", _VCPU + "VCPUOP_stop_singleshot_timer"),
    "VCPUOP_register_vcpu_info": ("moves the vcpu_info of vCPU {1} to a page of its own", _VCPU + "VCPUOP_register_vcpu_info"),
    "VCPUOP_send_nmi": ("sends an NMI to vCPU {1}", _VCPU + "VCPUOP_send_nmi"),
    "VCPUOP_register_vcpu_time_memory_area": ("has Xen keep the time of vCPU {1} in its memory", _VCPU + "VCPUOP_register_vcpu_time_memory_area"),
    "vcpu_op": ("asks for something about vCPU {1}", "vcpu.h"),
    "set_timer_op": ("wants VIRQ_TIMER at {0} ns of system time", "xen.h, HYPERVISOR_set_timer_op"),
    # traps, descriptors, registers
    "set_trap_table": ("says which code handles its exceptions", "arch-x86/xen.h, struct trap_info"),
    "set_callbacks": ("says which code takes its events and failures", "callback.h"),
    "CALLBACKOP_register": ("says which code takes a kind of callback", "callback.h, CALLBACKOP_register"),
    "CALLBACKOP_unregister": ("takes a callback back", "callback.h, CALLBACKOP_unregister"),
    "callback_op": ("asks for something about callbacks", "callback.h"),
    "stack_switch": ("says which stack its kernel uses", "xen.h, HYPERVISOR_stack_switch"),
    "fpu_taskswitch": ("sets or clears TS, to be told of the next use of the FPU", "xen.h, HYPERVISOR_fpu_taskswitch"),
    "set_debugreg": ("sets debug register {0}", "xen.h, HYPERVISOR_set_debugreg"),
    "get_debugreg": ("reads debug register {0}", "xen.h, HYPERVISOR_get_debugreg"),
    "set_segment_base": ("sets the base of a segment", "arch-x86/xen-x86_64.h, SEGBASE_*"),
    "iret": ("returns from an exception or an event", "arch-x86/xen-x86_64.h, struct iret_context"),
    "nmi_op": ("asks for something about NMIs", "nmi.h"),
    # the rest
    "multicall": ("makes {1} hypercalls at once", "xen.h, struct multicall_entry"),
    "xen_version": ("asks what this Xen is and can do", "version.h"),
    "console_io": ("writes to or reads from Xen's own console", "xen.h, CONSOLEIO_*"),
    "PHYSDEVOP_eoi": ("ends an interrupt of a device", _PHYSDEV + "PHYSDEVOP_eoi"),
    "PHYSDEVOP_irq_status_query": ("asks whether an interrupt needs an end", _PHYSDEV + "PHYSDEVOP_irq_status_query"),
    "PHYSDEVOP_set_iopl": ("sets its I/O privilege level", _PHYSDEV + "PHYSDEVOP_set_iopl"),
    "PHYSDEVOP_map_pirq": ("asks for the PIRQ of an interrupt line", _PHYSDEV + "PHYSDEVOP_map_pirq"),
    "PHYSDEVOP_unmap_pirq": ("gives a PIRQ back", _PHYSDEV + "PHYSDEVOP_unmap_pirq"),
    "physdev_op": ("asks for something about devices", "physdev.h"),
    "vm_assist": ("switches one of Xen's assists on or off", "xen.h, VMASST_*"),
    "domctl": ("does something to a domain, as the toolstack", "domctl.h"),
    "sysctl": ("does something to the host, as the toolstack", "sysctl.h"),
    "platform_op": ("does something to the platform", "platform.h"),
    "xsm_op": ("asks for something about access control", "xsm/flask_op.h"),
    "xenoprof_op": ("asks for something about profiling", "xenoprof.h"),
    "xenpmu_op": ("asks for something about performance counters", "pmu.h"),
    "hvm_op": ("asks for something about HVM guests", "hvm/hvm_op.h"),
    "dm_op": ("does something for the device model of an HVM guest", "hvm/dm_op.h"),
    "kexec_op": ("asks for something about kexec", "kexec.h"),
    "tmem_op": ("asks for something about transcendent memory", "tmem.h"),
    "argo_op": ("asks for something about Argo", "argo.h"),
    "hypfs_op": ("looks into Xen's own file system of settings", "hypfs.h"),
    "sched_op_compat": ("asks for something about scheduling, in the old way", "sched.h"),
    "event_channel_op_compat": ("asks for something about event channels, in the old way", "event_channel.h"),
    "physdev_op_compat": ("asks for something about devices, in the old way", "physdev.h"),
}  # fmt: skip
"""Name of a command, or of a hypercall → what the caller does; the header and the section."""

UNKNOWN: Final = ("makes a hypercall that has no name here", "xen.h, __HYPERVISOR_*")
