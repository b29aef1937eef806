/* A kernel that asks Xen thousands of questions, most of them wrong, and prints the answers.
 *
 * Each line has the number of the question, the hypercall, its arguments, the result, and what became of the 64 bytes
 * that the argument pointed to. The first word of the command line is the seed. Nothing is asked whose answer tells of
 * time, or of the address of a page that Xen has chosen. Built by tests/boot/mini_kernel.py.
 */
#include <stddef.h>
#include <stdint.h>

#define __XEN_INTERFACE_VERSION__ 0x00040e00
#include <xen/xen.h>
#include <xen/sched.h>

#define QUESTIONS 3000
#define WORDS 16

asm(".section .text.start, \"ax\"\n"
    ".globl _start\n"
    "_start:\n"
    "    mov $stack_top, %rsp\n"
    "    mov %rsi, %rdi\n"
    "    jmp main\n"
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
    ".globl room, stack_top\n"
    "room: .skip 8192\n"
    "    .skip 8192\n"
    "stack_top: .skip 4096\n"
    ".text\n");

extern uint32_t room[];

static uint64_t state;
static char line[1024], *end;

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

static void put_number(uint64_t number)
{
    int shift = 60;

    while ( shift && !(number >> shift) )
        shift -= 4;
    for ( ; shift >= 0; shift -= 4 )
        *end++ = "0123456789abcdef"[number >> shift & 15];
    *end++ = ' ';
}

/* A number at which something changes. */
static uint32_t edge(void)
{
    static const uint32_t edges[] = {
        0, 0, 0, 1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 23, 24, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 1024, 4095, 4096,
        0x7fef, DOMID_SELF, DOMID_IO, DOMID_XEN, DOMID_COW, DOMID_INVALID, DOMID_IDLE, 0xffff, 0x7fffffff, 0x80000000,
        0xfffffffe, 0xffffffff,
    };

    return next() % 8 ? edges[next() % (sizeof(edges) / 4)] : (uint32_t)next();
}

static const uint8_t memory_ops[] = { 2, 3, 4, 9, 10, 12, 15, 16, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 63 };
static const uint8_t event_ops[] = { 0, 0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 8, 9, 9, 13, 14, 15, 16, 77 };
static const uint8_t grant_ops[] = { 0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 77 };
static const uint8_t vcpu_ops[] = { 3, 7, 9, 12, 14, 15, 99 };
static const uint8_t sched_ops[] = { 0, 7, 8, 99 };
static const uint8_t version_ops[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 99 };
static const uint8_t plain[] = {
    __HYPERVISOR_xsm_op, __HYPERVISOR_nmi_op, __HYPERVISOR_hvm_op, __HYPERVISOR_sysctl, __HYPERVISOR_domctl,
    __HYPERVISOR_tmem_op, __HYPERVISOR_argo_op, __HYPERVISOR_xenpmu_op, __HYPERVISOR_dm_op, 43, 44, 47, 50, 55, 11, 22,
};

#define PICK(list) ((list)[next() % sizeof(list)])

static void ask(unsigned int number)
{
    uint64_t a[4] = { 0 }, nr;
    uint32_t before[20] = { 0 };
    long rc;
    uint64_t hash = 0xcbf29ce484222325;

    for ( unsigned int i = 0; i < 2048; i++ )
        room[i] = 0;
    for ( unsigned int i = 0; i < WORDS; i++ )
        before[i] = room[i] = edge();
    switch ( next() % 14 )
    {
    case 0: case 1: case 2: case 3:
        /* Domains and ports are small more often than not. */
        if ( next() % 2 )
            before[0] = room[0] = next() % 3 ? next() % 12 : DOMID_SELF | (next() % 12) << 16;
        nr = __HYPERVISOR_event_channel_op; a[0] = PICK(event_ops); a[1] = (uint64_t)room; break;
    case 4: case 5:
        nr = __HYPERVISOR_grant_table_op; a[0] = PICK(grant_ops); a[1] = (uint64_t)room; a[2] = next() % 3; break;
    case 6:
        nr = __HYPERVISOR_memory_op; a[0] = PICK(memory_ops); a[1] = (uint64_t)room; break;
    case 7:
        nr = __HYPERVISOR_xen_version; a[0] = PICK(version_ops); a[1] = next() % 4 ? (uint64_t)room : 0; break;
    case 8:
        nr = __HYPERVISOR_vcpu_op; a[0] = PICK(vcpu_ops); a[1] = next() % 4; a[2] = (uint64_t)room; break;
    case 9:
        nr = __HYPERVISOR_mmuext_op; a[0] = (uint64_t)room; a[1] = next() % 3; a[2] = next() % 2 ? 0 : (uint64_t)(room + 64);
        a[3] = next() % 2 ? DOMID_SELF : edge();
        break;
    case 10:
        nr = __HYPERVISOR_mmu_update; a[0] = (uint64_t)room; a[1] = next() % 3; a[2] = next() % 2 ? 0 : (uint64_t)(room + 64);
        a[3] = next() % 2 ? DOMID_SELF : edge();
        break;
    case 11:
        nr = __HYPERVISOR_sched_op; a[0] = PICK(sched_ops); a[1] = (uint64_t)room; break;
    case 12:
        switch ( next() % 5 )
        {
        case 0: nr = __HYPERVISOR_get_debugreg; a[0] = next() % 9; break;
        case 1: nr = __HYPERVISOR_set_debugreg; a[0] = next() % 7; a[1] = edge(); break;
        case 2: nr = __HYPERVISOR_update_descriptor; a[0] = edge(); a[1] = edge(); break;
        case 3: nr = __HYPERVISOR_update_va_mapping; a[0] = edge(); a[1] = edge(); a[2] = next() % 4; break;
        default: nr = __HYPERVISOR_vm_assist; a[0] = next() % 4; a[1] = next() % 2 ? edge() : next() % 8; break;
        }
        break;
    default:
        nr = PICK(plain); a[0] = next() % 3 ? edge() : (uint64_t)room; a[1] = (uint64_t)room; a[2] = edge(); break;
    }
    rc = hypercall(nr, a[0], a[1], a[2], a[3], 0);
    for ( unsigned int i = 0; i < 2048; i++ )
        hash = (hash ^ room[i]) * 0x100000001b3;
    end = line;
    *end++ = 'Q';
    *end++ = ' ';
    put_number(number);
    put_number(nr);
    for ( unsigned int i = 0; i < 4; i++ )
        put_number(a[i]);
    *end++ = '=';
    *end++ = ' ';
    put_number(rc);
    *end++ = '#';
    *end++ = ' ';
    put_number(hash);
    *end++ = ':';
    *end++ = ' ';
    for ( unsigned int i = 0; i < 20; i++ )
        put_number(before[i]);
    *end++ = '>';
    *end++ = ' ';
    for ( unsigned int i = 0; i < 20; i++ )
        put_number(room[i]);
    *end++ = '\n';
    hypercall(__HYPERVISOR_console_io, CONSOLEIO_write, end - line, (uint64_t)line, 0, 0);
}

void main(start_info_t *info)
{
    struct sched_shutdown how = { .reason = SHUTDOWN_poweroff };

    for ( const char *digit = (const char *)info->cmd_line; *digit >= '0' && *digit <= '9'; digit++ )
        state = state * 10 + *digit - '0';
    state = (state + 1) * 0x9e3779b97f4a7c15;
    for ( unsigned int i = 0; i < QUESTIONS; i++ )
        ask(i);
    hypercall(__HYPERVISOR_console_io, CONSOLEIO_write, 4, (uint64_t)"end\n", 0, 0);
    hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (uint64_t)&how, 0, 0, 0);
}
