/* A small PV kernel that does everything right: events, traps, console, xenstore, time, an end with a reason.
 *
 * FAULT is the number of the check of suite guest-abi that it is to fail; 0 for none. With SUSPENDS it offers to be
 * suspended and ends accordingly. (It does not publish its p2m list, without which no toolstack could save it.)
 */
#include <stddef.h>
#include <stdint.h>

#define __XEN_INTERFACE_VERSION__ 0x00040e00
#include <xen/xen.h>
#include <xen/callback.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/io/console.h>
#include <xen/io/xs_wire.h>
#include <xen/sched.h>
#include <xen/vcpu.h>

#ifndef FAULT
#define FAULT 0
#endif
#define PAGE_SIZE 4096
#define WRITABLE 7 /* present, writable, user: a PV kernel runs in ring 3 */

asm(".section .text.start, \"ax\"\n"
    ".globl _start\n"
    "_start:\n"
    "    cld\n"
    "    lea stack_top(%rip), %rsp\n"
    "    mov %rsi, %rdi\n"
    "    call main\n"
    "    ud2\n"
    /* Xen has pushed rcx and r11 on top of what a processor pushes, and set the upcall mask. */
    ".globl event_entry\n"
    "event_entry:\n"
    "    pop %rcx\n"
    "    pop %r11\n"
    "    push %rax; push %rcx; push %rdx; push %rsi; push %rdi; push %r8; push %r9; push %r10; push %r11\n"
    "    cld\n"
    "    call handle_events\n"
    "    pop %r11; pop %r10; pop %r9; pop %r8; pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rax\n"
    /* The stub of HYPERVISOR_iret is jumped to, and pushes the rest of iret_context: rcx, r11, rax. */
    "    push $0\n"
    "    jmp hypercall_page + 23 * 32\n"
    ".globl trap_entry\n"
    "trap_entry:\n"
    "    ud2\n"
    ".globl failsafe_entry\n"
    "failsafe_entry:\n"
    "    ud2\n"
    ".section .note.Xen, \"a\"\n"
    ".macro note type desc:vararg\n"
    "    .long 4, 2f - 1f, \\type\n"
    "    .asciz \"Xen\"\n"
    "1:  \\desc\n"
    "2:  .balign 4\n"
    ".endm\n"
#if FAULT != 4
    "    note 6 .asciz \"abi\"\n"
#endif
    "    note 8 .asciz \"generic\"\n"
    "    note 5 .asciz \"xen-3.0\"\n"
    "    note 3 .quad 0xffffffff80000000\n"
#if FAULT == 2
    "    note 1 .quad kernel_end\n"
#elif FAULT != 1
    "    note 1 .quad _start\n"
#endif
#if FAULT == 3
    "    note 2 .quad hypercall_page + 64\n"
#else
    "    note 2 .quad hypercall_page\n"
#endif
    ".section .bss\n"
    ".balign 4096\n"
    ".globl hypercall_page\n"
    "hypercall_page: .skip 4096\n"
    ".skip 8192\n"
    "stack_top:\n"
    ".text\n");

extern char hypercall_page[], event_entry[], trap_entry[], failsafe_entry[];

#define PAGE __attribute__((aligned(PAGE_SIZE)))
static char PAGE shared_page[PAGE_SIZE], PAGE console_page[PAGE_SIZE], PAGE store_page[PAGE_SIZE];
static volatile shared_info_t *const shared = (void *)shared_page;
static volatile struct xencons_interface *const console = (void *)console_page;
static volatile struct xenstore_domain_interface *const store = (void *)store_page;
static start_info_t *info;
static evtchn_port_t timer_port;
static uint64_t last_time;

#define barrier() asm volatile("mfence" ::: "memory")

static long hypercall(int nr, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4)
{
    long result;
    register uint64_t r10 asm("r10") = a4;

    asm volatile("call *%5"
                 : "=a" (result), "+D" (a1), "+S" (a2), "+d" (a3), "+r" (r10)
                 : "r" (hypercall_page + nr * 32)
                 : "memory", "rcx", "r11", "r8", "r9");
    return result;
}

static void fail(void)
{
    asm volatile("ud2");
}

static void send(evtchn_port_t port)
{
    struct evtchn_send op = { .port = port };

    hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_send, (uint64_t)&op, 0, 0);
}

static void shut_down(unsigned int reason)
{
    struct sched_shutdown how = { .reason = reason };

    hypercall(__HYPERVISOR_sched_op, SCHEDOP_shutdown, (uint64_t)&how, 0, 0);
}

static int map(void *address, uint64_t frame, uint64_t flags)
{
    return hypercall(__HYPERVISOR_update_va_mapping, (uint64_t)address, frame << 12 | flags, UVMF_INVLPG, 0);
}

/* ---- the console */

static void print(const char *text)
{
    for ( ; *text; text++ )
    {
#if FAULT != 30
        while ( console->out_prod - console->out_cons >= sizeof(console->out) )
        {
            send(info->console.domU.evtchn);
            hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0, 0);
        }
#endif
        console->out[console->out_prod & (sizeof(console->out) - 1)] = *text;
        barrier();
        console->out_prod++;
    }
#if FAULT != 31
    send(info->console.domU.evtchn);
#endif
}

/* Throw away what is typed. */
static void take_input(void)
{
    uint32_t typed = console->in_prod - console->in_cons;

#if FAULT == 32
    if ( typed > sizeof(console->in) )
        fail();
#endif
    if ( !typed || typed > sizeof(console->in) )
        return;
    console->in_cons = console->in_prod;
    send(info->console.domU.evtchn);
}

/* ---- events */

/* Nanoseconds since Xen was booted: what Xen wrote last, and what the time stamp counter has counted since. */
static uint64_t now(void)
{
    volatile struct vcpu_time_info *time = &shared->vcpu_info[0].time;
    uint32_t version, low, high;
    uint64_t delta, result;

    do {
        version = time->version;
        barrier();
        asm volatile("rdtsc" : "=a" (low), "=d" (high));
        delta = ((uint64_t)high << 32 | low) - time->tsc_timestamp;
        delta = time->tsc_shift < 0 ? delta >> -time->tsc_shift : delta << time->tsc_shift;
        result = time->system_time + (uint64_t)((unsigned __int128)delta * time->tsc_to_system_mul >> 32);
        barrier();
    } while ( version & 1 || version != time->version );
    return result;
}

static void set_timer(void)
{
    hypercall(__HYPERVISOR_set_timer_op, now() + 530000000ull, 0, 0, 0);
}

static void on_time(void)
{
#if FAULT == 23
    if ( last_time && now() - last_time > 3000000000ull )
        fail();
#endif
    last_time = now();
    set_timer();
}

void handle_events(void)
{
    volatile struct vcpu_info *me = &shared->vcpu_info[0];
#if FAULT == 21
    static unsigned int surprises;
#endif

#if FAULT == 14
    shut_down(SHUTDOWN_poweroff); /* It cannot say that it has heard. */
#endif
    while ( me->evtchn_upcall_pending )
    {
        uint64_t words;

        me->evtchn_upcall_pending = 0;
        barrier();
        words = __atomic_exchange_n(&me->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
#if FAULT == 20
        return;
#endif
        while ( words )
        {
            unsigned int word = __builtin_ctzl(words);
            uint64_t ready;

            words &= words - 1;
            while ( (ready = shared->evtchn_pending[word] & ~shared->evtchn_mask[word]) != 0 )
            {
                unsigned int bit = __builtin_ctzl(ready), port = word * 64 + bit;

                __atomic_fetch_and((uint64_t *)&shared->evtchn_pending[word], ~(1ul << bit), __ATOMIC_SEQ_CST);
                if ( port == info->console.domU.evtchn )
                    take_input();
                else if ( port == timer_port )
                    on_time();
#if FAULT == 21
                else if ( store->rsp_prod == store->rsp_cons && ++surprises > 20 )
                    fail();
#endif
            }
        }
    }
}

static void wait(void)
{
#if FAULT == 22
    shared->vcpu_info[0].evtchn_upcall_mask = 0;
    hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0, 0);
#else
    hypercall(__HYPERVISOR_sched_op, SCHEDOP_block, 0, 0, 0); /* lets events in */
#endif
    shared->vcpu_info[0].evtchn_upcall_mask = 1;
}

static void come_up(void)
{
    static struct trap_info traps[] = {
        { 13, 4, FLAT_KERNEL_CS, (unsigned long)trap_entry },
        { 14, 4, FLAT_KERNEL_CS, (unsigned long)trap_entry },
        { 0 },
    };
    static struct callback_register event = { .type = CALLBACKTYPE_event };
    static struct callback_register failsafe = { .type = CALLBACKTYPE_failsafe };
    static struct evtchn_bind_virq bind = { .virq = VIRQ_TIMER };
    unsigned int port;

    event.address = (unsigned long)event_entry;
    failsafe.address = (unsigned long)failsafe_entry;
#if FAULT == 14
    map(shared_page, ((uint64_t *)info->mfn_list)[16], WRITABLE);
#else
    map(shared_page, info->shared_info >> 12, WRITABLE);
#endif
    map(console_page, info->console.domU.mfn, WRITABLE);
    map(store_page, info->store_mfn, WRITABLE);
#if FAULT == 15
    map(shared_page, ((uint64_t *)info->mfn_list)[(info->pt_base >> 12) & 0x7ffff], WRITABLE);
#endif
#if FAULT == 11 || FAULT == 12
    shared->evtchn_mask[0] = ~0ul;
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
#endif
#if FAULT == 11
    hypercall(__HYPERVISOR_set_trap_table, (uint64_t)traps, 0, 0, 0);
    shared->vcpu_info[0].evtchn_upcall_mask = 0;
    hypercall(__HYPERVISOR_xen_version, 0, 0, 0, 0);
    shared->vcpu_info[0].evtchn_upcall_mask = 1;
#endif
#if FAULT != 12
    hypercall(__HYPERVISOR_set_trap_table, (uint64_t)traps, 0, 0, 0);
#endif
    hypercall(__HYPERVISOR_callback_op, CALLBACKOP_register, (uint64_t)&event, 0, 0);
#if FAULT != 13
    hypercall(__HYPERVISOR_callback_op, CALLBACKOP_register, (uint64_t)&failsafe, 0, 0);
#endif
    for ( port = 0; port < 64; port++ )
        shared->evtchn_mask[port] = ~0ul;
    hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, (uint64_t)&bind, 0, 0);
    timer_port = bind.port;
    shared->evtchn_mask[0] = ~(1ul << info->console.domU.evtchn | 1ul << info->store_evtchn | 1ul << timer_port);
#if FAULT == 16
    hypercall(__HYPERVISOR_vcpu_op, VCPUOP_stop_periodic_timer, 1, 0, 0);
#endif
    hypercall(__HYPERVISOR_vcpu_op, VCPUOP_stop_periodic_timer, 0, 0, 0);
    set_timer();
}

/* ---- xenstore */

static void put(const void *data, uint32_t size)
{
    const char *bytes = data;

    while ( size )
    {
        if ( store->req_prod - store->req_cons >= XENSTORE_RING_SIZE )
        {
            send(info->store_evtchn);
            wait();
            continue;
        }
        store->req[MASK_XENSTORE_IDX(store->req_prod)] = *bytes++;
        barrier();
        store->req_prod++;
        size--;
    }
}

static void get(void *data, uint32_t size)
{
    char *bytes = data;

    while ( size )
    {
        if ( store->rsp_prod == store->rsp_cons )
        {
            wait();
            continue;
        }
        *bytes++ = store->rsp[MASK_XENSTORE_IDX(store->rsp_cons)];
        barrier();
        store->rsp_cons++;
        size--;
    }
}

static void ask(uint32_t type, const char *text, uint32_t size)
{
    struct xsd_sockmsg head = { .type = type, .len = size };

    put(&head, sizeof(head));
    put(text, size);
    send(info->store_evtchn);
}

/* Take a message; returns its type. The text ends with a zero. */
static uint32_t answer(char *text, uint32_t room)
{
    struct xsd_sockmsg head;
    uint32_t i;

    get(&head, sizeof(head));
    for ( i = 0; i < head.len; i++ )
    {
        char byte;

        get(&byte, 1);
        if ( i < room - 1 )
            text[i] = byte;
    }
    text[i < room ? i : room - 1] = 0;
    send(info->store_evtchn);
    return head.type;
}

static int is(const char *text, const char *word)
{
    while ( *word && *word == *text )
        word++, text++;
    return *word == *text;
}

static void obey(const char *request)
{
    int poweroff = is(request, "poweroff"), reboot = is(request, "reboot"), suspend = 0;

#ifdef SUSPENDS
    suspend = is(request, "suspend");
#endif
#if FAULT == 40
    return;
#endif
#if FAULT == 43
    if ( *request && !poweroff && !reboot && !suspend )
        fail();
#endif
    if ( !poweroff && !reboot && !suspend )
        return;
#if FAULT != 41
    {
        char text[64];

        ask(XS_WRITE, "control/shutdown", 17);
        while ( answer(text, sizeof(text)) == XS_WATCH_EVENT )
            ;
    }
#endif
#if FAULT == 45
    fail();
#endif
#if FAULT == 42
    reboot = 0;
#endif
    shut_down(suspend ? SHUTDOWN_suspend : reboot ? SHUTDOWN_reboot : SHUTDOWN_poweroff);
}

static void grant(void)
{
    struct gnttab_setup_table op = { .dom = DOMID_SELF, .nr_frames = 1 };
    static char PAGE table[PAGE_SIZE];
    xen_pfn_t frame = 0;

    set_xen_guest_handle(op.frame_list, &frame);
    hypercall(__HYPERVISOR_grant_table_op, GNTTABOP_setup_table, (uint64_t)&op, 1, 0);
    map(table, frame, WRITABLE);
    ((grant_entry_v1_t *)table)[20].frame = ((uint64_t *)info->mfn_list)[16];
    ((grant_entry_v1_t *)table)[20].domid = 7;
    barrier();
    ((grant_entry_v1_t *)table)[20].flags = GTF_permit_access;
}

void main(start_info_t *start_info)
{
    static char text[256], filler[3000];
    uint32_t i;

    info = start_info;
#if FAULT == 10
    *(volatile int *)0x123456789000 = 1;
#endif
    come_up();
    for ( i = 0; i < sizeof(filler) - 1; i++ )
        filler[i] = "0123456789\n"[i % 11];
#if FAULT != 31
    print(filler);
#endif
    print("abi kernel: up\n");
#if FAULT == 24
    grant();
#else
    (void)grant;
#endif
#if FAULT == 33
    {
        struct xsd_sockmsg head = { .type = XS_READ, .len = 5000 };

        put(&head, sizeof(head));
        send(info->store_evtchn);
        for ( ; ; )
            wait();
    }
#endif
#if FAULT == 44 || defined(SUSPENDS)
    ask(XS_WRITE, "control/feature-suspend\0" "1", 25);
    answer(text, sizeof(text));
#endif
    ask(XS_WATCH, "control/shutdown\0t", 19);
    for ( ; ; )
    {
        if ( answer(text, sizeof(text)) != XS_WATCH_EVENT )
            continue;
        ask(XS_READ, "control/shutdown", 17);
        while ( answer(text, sizeof(text)) == XS_WATCH_EVENT )
            ;
        obey(text);
    }
}
