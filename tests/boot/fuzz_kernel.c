/* A kernel that executes noise: random instructions, and hypercalls with random arguments, until something ends it.
 *
 * Every exception, and a timer ten times a millisecond of its time, leads back to the start of the loop. The command
 * line is the seed. Built by mini_kernel.py.
 */
#include <stddef.h>
#include <stdint.h>

#define __XEN_INTERFACE_VERSION__ 0x00040e00
#include <xen/xen.h>
#include <xen/event_channel.h>
#include <xen/sched.h>
#include <xen/vcpu.h>

#define ROUNDS 400

asm(".section .text.start, \"ax\"\n"
    ".globl _start\n"
    "_start:\n"
    "    mov %rsi, %rdi\n"
    "    jmp main\n"
    ".globl again_entry\n"
    "again_entry:\n"
    "    mov $stack_top, %rsp\n"
    "    cld\n"
    "    jmp again\n"
    ".section .note.Xen, \"a\"\n"
    ".macro note type desc:vararg\n"
    "    .long 4, 2f - 1f, \\type\n"
    "    .asciz \"Xen\"\n"
    "1:  \\desc\n"
    "2:  .balign 4\n"
    ".endm\n"
    "    note 8 .asciz \"generic\"\n"
    "    note 5 .asciz \"xen-3.0\"\n"
    "    note 3 .quad 0xffffffff80000000\n"
    "    note 1 .quad _start\n"
    ".section .bss\n"
    ".balign 4096\n"
    ".globl noise, stack_top, shared\n"
    "noise: .skip 8192\n"
    "shared: .skip 4096\n"
    "    .skip 8192\n"
    "stack_top: .skip 4096\n"
    ".text\n");

extern uint8_t noise[];
extern char again_entry[], shared[];

static uint64_t state, rounds;
static start_info_t *info;

static long hypercall(uint64_t nr, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5)
{
    register uint64_t r10 asm("r10") = a4;
    register uint64_t r8 asm("r8") = a5;

    asm volatile("syscall"
                 : "+a" (nr), "+D" (a1), "+S" (a2), "+d" (a3), "+r" (r10), "+r" (r8)
                 :
                 : "rcx", "r11", "memory");
    return nr;
}

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* A number that means something to somebody. */
static uint64_t some_value(void)
{
    switch ( next() % 8 )
    {
    case 0: return next() % 4;
    case 1: return next() % 64;
    case 2: return DOMID_SELF;
    case 3: return (uint64_t)noise + next() % 8192;
    case 4: return (uint64_t)info + next() % 4096;
    case 5: return HYPERVISOR_VIRT_START + (next() & 0xffffff);
    case 6: return ~(next() % 4);
    default: return next() >> next() % 64;
    }
}

static void fill(void)
{
    static const uint8_t likely[] = {
        0x0f, 0x05, 0xcd, 0x80, 0xf4, 0xfa, 0xfb, 0xcf, 0x48, 0xec, 0xee, 0x20, 0x22, 0x30, 0x32, 0xa2, 0x01, 0x8e,
        0xca, 0xc8, 0xf0, 0x9c, 0x9d, 0xff, 0xe8, 0xc3, 0xcb, 0xf1, 0xcc, 0x0b, 0x31, 0xae,
    };

    for ( unsigned int i = 0; i < 8192; i += 8 )
        *(uint64_t *)(noise + i) = next();
    for ( unsigned int i = 0; i < 4096; i++ )
        if ( next() % 3 == 0 )
            noise[i] = likely[next() % sizeof(likely)];
}

void again(void)
{
    ((shared_info_t *)shared)->vcpu_info[0].evtchn_upcall_mask = 0;
    ((shared_info_t *)shared)->vcpu_info[0].evtchn_upcall_pending = 0;
    ((shared_info_t *)shared)->evtchn_pending[0] = 0;
    while ( rounds++ < ROUNDS )
    {
        if ( next() % 4 == 0 )
        {
            fill();
            ((void (*)(uint64_t, uint64_t, uint64_t))(noise + next() % 4096))(some_value(), some_value(), some_value());
        }
        else
        {
            /* What ends the domain, or waits for ever, would end the noise. */
            uint64_t nr = next() % 50;

            if ( nr != __HYPERVISOR_sched_op && nr != __HYPERVISOR_iret && nr != __HYPERVISOR_sched_op_compat )
                hypercall(nr, some_value(), some_value(), some_value(), some_value(), some_value());
        }
    }
    {
        struct sched_shutdown how = { .reason = SHUTDOWN_poweroff };

        hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (uint64_t)&how, 0, 0, 0);
    }
}

void main(start_info_t *start_info)
{
    static struct trap_info traps[33];
    struct vcpu_set_periodic_timer timer = { .period_ns = 1000000 };
    struct evtchn_bind_virq bind = { .virq = VIRQ_TIMER };

    info = start_info;
    for ( const char *digit = (const char *)info->cmd_line; *digit; digit++ )
        state = state * 10 + *digit - '0';
    state = (state + 1) * 0x9e3779b97f4a7c15;
    for ( unsigned int i = 0; i < 32; i++ )
        traps[i] = (struct trap_info){ i, 3, FLAT_KERNEL_CS, (unsigned long)again_entry };
    hypercall(__HYPERVISOR_set_trap_table, (uint64_t)traps, 0, 0, 0, 0);
    hypercall(__HYPERVISOR_set_callbacks, (uint64_t)again_entry, (uint64_t)again_entry, (uint64_t)again_entry, 0, 0);
    hypercall(__HYPERVISOR_update_va_mapping, (uint64_t)shared, info->shared_info | 7, UVMF_INVLPG, 0, 0);
    hypercall(__HYPERVISOR_vcpu_op, VCPUOP_set_periodic_timer, 0, (uint64_t)&timer, 0, 0);
    hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, (uint64_t)&bind, 0, 0, 0);
    again();
}
