/*
 * A Xen for one program: what Xen's xenstored asks of the hypervisor, answered from files in $XEN_SHIM.
 *
 *   domains   a byte for each domain id: 0 no such domain, else bit 0 it exists, bit 1 it has shut down, bit 2 it dies
 *   ring-N    the xenstore page of domain N
 *   events    a FIFO of 32-bit port numbers that have an event pending
 *
 * Port 1 is VIRQ_DOM_EXC, port 1000 + N that of domain N. Preloaded into the daemon (LD_PRELOAD), so that it can be run
 * and spoken to through sockets and rings where there is no Xen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define DOMAINS 0x8000
#define VIRQ_PORT 1
#define FIRST_PORT 1000
#define PAGE 4096

static int event_fd = -1;

static int open_in_shim(const char *name, int flags)
{
    char path[4096];
    static int (*real_open)(const char *, int, ...);

    if (!real_open)
        real_open = dlsym(RTLD_NEXT, "open");
    snprintf(path, sizeof path, "%s/%s", getenv("XEN_SHIM"), name);
    return real_open(path, flags | O_CLOEXEC);
}

static unsigned char state_of(unsigned int domid)
{
    static unsigned char *states;

    if (!states) {
        int fd = open_in_shim("domains", O_RDONLY);
        if (fd < 0)
            abort();
        states = mmap(NULL, DOMAINS, PROT_READ, MAP_SHARED, fd, 0);
        close(fd);
    }
    return domid < DOMAINS ? states[domid] : 0;
}

static void *map_ring(unsigned int domid)
{
    char name[32];
    void *page;
    int fd;

    snprintf(name, sizeof name, "ring-%u", domid);
    fd = open_in_shim(name, O_RDWR);
    if (fd < 0)
        return NULL;
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

/* dom0's own ring and port are files of its kernel. */
int open(const char *path, int flags, ...)
{
    static int (*real_open)(const char *, int, ...);
    va_list arguments;
    mode_t mode;

    if (!strcmp(path, "/proc/xen/xsd_kva"))
        return open_in_shim("ring-0", flags);
    if (!strcmp(path, "/proc/xen/xsd_port"))
        return open_in_shim("port-0", flags);
    if (!real_open)
        real_open = dlsym(RTLD_NEXT, "open");
    va_start(arguments, flags);
    mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return real_open(path, flags, mode);
}

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild, unsigned int flags)
{
    return (xc_interface *)&event_fd;
}

int xc_interface_close(xc_interface *xch)
{
    return 0;
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
    unsigned int domid, count = 0;

    for (domid = first; domid < DOMAINS && count < max; domid++) {
        unsigned char state = state_of(domid);
        if (!state)
            continue;
        memset(&info[count], 0, sizeof *info);
        info[count].domid = domid;
        info[count].shutdown = !!(state & 2);
        info[count].dying = !!(state & 4);
        count++;
    }
    if (!count) {
        errno = ESRCH;
        return -1;
    }
    return count;
}

xenevtchn_handle *xenevtchn_open(xentoollog_logger *logger, unsigned int flags)
{
    event_fd = open_in_shim("events", O_RDWR);
    return event_fd < 0 ? NULL : (xenevtchn_handle *)&event_fd;
}

xenevtchn_handle *xenevtchn_fdopen(xentoollog_logger *logger, int fd, unsigned int flags)
{
    event_fd = fd;
    return (xenevtchn_handle *)&event_fd;
}

int xenevtchn_fd(xenevtchn_handle *handle)
{
    return event_fd;
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *handle, unsigned int virq)
{
    return VIRQ_PORT;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *handle, uint32_t domid, evtchn_port_t port)
{
    if (state_of(domid))
        return FIRST_PORT + domid;
    errno = EINVAL;
    return -1;
}

int xenevtchn_unbind(xenevtchn_handle *handle, evtchn_port_t port)
{
    return 0;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *handle)
{
    uint32_t port;

    return read(event_fd, &port, sizeof port) == sizeof port ? (int)port : -1;
}

int xenevtchn_unmask(xenevtchn_handle *handle, evtchn_port_t port)
{
    return 0;
}

int xenevtchn_notify(xenevtchn_handle *handle, evtchn_port_t port)
{
    return 0;
}

xengnttab_handle *xengnttab_open(xentoollog_logger *logger, unsigned int flags)
{
    return (xengnttab_handle *)&event_fd;
}

int xengnttab_close(xengnttab_handle *handle)
{
    return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *handle, uint32_t count)
{
    return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *handle, uint32_t domid, uint32_t ref, int prot)
{
    void *page = state_of(domid) ? map_ring(domid) : NULL;

    if (!page)
        errno = EINVAL;
    return page;
}

int xengnttab_unmap(xengnttab_handle *handle, void *start, uint32_t count)
{
    return munmap(start, (size_t)count * PAGE);
}
