/* A very small PV kernel: prints, and does the one thing that the first word of its command line says.
 *
 * As dom0 it prints through console_io, as another domain into its console ring, which a domain builder puts two pages
 * behind start_info. Built by mini_kernel.py.
 */
#include <stddef.h>
#include <stdint.h>

#define __XEN_INTERFACE_VERSION__ 0x00040e00
#include <xen/xen.h>
#include <xen/io/console.h>
#include <xen/sched.h>
#include <xen/event_channel.h>
#include <xen/version.h>

#define PAGE_SIZE 4096

asm(".section .text.start, \"ax\"\n"
    ".globl _start\n"
    "_start:\n"
    "    mov %rsi, %rdi\n"
    "    jmp main\n"
    ".section .note.Xen, \"a\"\n"
    ".macro note type desc:vararg\n"
    "    .long 4, 2f - 1f, \\type\n"
    "    .asciz \"Xen\"\n"
    "1:  \\desc\n"
    "2:  .balign 4\n"
    ".endm\n"
    "    note 6 .asciz \"mini\"\n"
    "    note 8 .asciz \"generic\"\n"
    "    note 5 .asciz \"xen-3.0\"\n"
    "    note 3 .quad 0xffffffff80000000\n"
    "    note 1 .quad _start\n"
    "    note 2 .quad hypercall_page\n"
    ".section .bss\n"
    ".balign 4096\n"
    "hypercall_page: .skip 4096\n"
    ".text\n");

extern char hypercall_page[];

static long hypercall(int nr, uint64_t a1, uint64_t a2, uint64_t a3)
{
    long result;

    asm volatile("call *%4"
                 : "=a" (result), "+D" (a1), "+S" (a2), "+d" (a3)
                 : "r" (hypercall_page + nr * 32)
                 : "memory", "r8", "r10");
    return result;
}

static start_info_t *info;

static size_t length(const char *text)
{
    size_t size = 0;

    while ( text[size] )
        size++;
    return size;
}

static void print(const char *text)
{
    struct xencons_interface *ring = (void *)((char *)info + 2 * PAGE_SIZE);
    struct evtchn_send send;

    if ( info->flags & SIF_INITDOMAIN )
    {
        hypercall(__HYPERVISOR_console_io, CONSOLEIO_write, length(text), (uint64_t)text);
        return;
    }
    for ( ; *text; text++ )
        ring->out[ring->out_prod++ & (sizeof(ring->out) - 1)] = *text;
    send.port = info->console.domU.evtchn;
    hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_send, (uint64_t)&send, 0);
}

static void shut_down(unsigned int reason)
{
    struct sched_shutdown how = { .reason = reason };

    hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (uint64_t)&how, 0);
}

static int is(const char *word)
{
    const char *cmdline = (const char *)info->cmd_line;

    while ( *word && *word == *cmdline )
        word++, cmdline++;
    return !*word && (!*cmdline || *cmdline == ' ');
}

/* Show what a domain builder put beside the kernel. */
static void show_module(void)
{
    char text[64], *end = text;
    const char *module = (const char *)info->mod_start;

    for ( unsigned int i = 0; i < info->mod_len && i < sizeof(text) - 2; i++ )
        *end++ = module[i];
    *end++ = '\n';
    *end = 0;
    print(text);
}

/* Show what CPUID says of leaf 1, the last leaf, and Xen's last leaf: ecx, edx, eax, eax. */
static void show_cpuid(void)
{
    uint32_t a, b, c, d, found[4];
    char text[40], *end = text;

    asm volatile("cpuid" : "=a" (a), "=b" (b), "=c" (c), "=d" (d) : "a" (1), "c" (0));
    found[0] = c;
    found[1] = d;
    asm volatile("cpuid" : "=a" (found[2]), "=b" (b), "=c" (c), "=d" (d) : "a" (0), "c" (0));
    asm volatile("cpuid" : "=a" (found[3]), "=b" (b), "=c" (c), "=d" (d) : "a" (0x40000000), "c" (0));
    for ( unsigned int i = 0; i < 4; i++ )
    {
        for ( int shift = 28; shift >= 0; shift -= 4 )
            *end++ = "0123456789abcdef"[found[i] >> shift & 15];
        *end++ = i < 3 ? ' ' : '\n';
    }
    *end = 0;
    print(text);
}

/* Wait for a key, and show it. */
static void echo(void)
{
    struct evtchn_bind_virq bind = { .virq = VIRQ_CONSOLE };
    struct sched_poll poll = { .nr_ports = 1 };
    char key[2] = "";

    hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, (uint64_t)&bind, 0);
    set_xen_guest_handle(poll.ports, &bind.port);
    print("press a key\n");
    hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, (uint64_t)&poll, 0);
    hypercall(__HYPERVISOR_console_io, CONSOLEIO_read, 1, (uint64_t)key);
    print(key);
    print("\n");
}

void main(start_info_t *start_info)
{
    info = start_info;
    print("mini kernel: hello\n");
    if ( info->mod_len )
        show_module();
    if ( is("crash") )
        asm volatile("mov $0x1234abcd, %eax; ud2");
    if ( is("fault") )
        *(volatile int *)0x123456789000 = 1;
    if ( is("reboot") )
        shut_down(SHUTDOWN_reboot);
    if ( is("panic") )
        shut_down(SHUTDOWN_crash);
    if ( is("strange") )
        shut_down(77);
    if ( is("cpuid") )
        show_cpuid();
    if ( is("echo") )
        echo();
    if ( is("hang") )
        for ( ; ; )
            asm volatile("" ::: "memory");
    if ( is("idle") )
        for ( ; ; )
            hypercall(__HYPERVISOR_sched_op, SCHEDOP_block, 0, 0);
    print("mini kernel: done\n");
    shut_down(SHUTDOWN_poweroff);
}
