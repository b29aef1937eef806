/*
 * One end of a vchan by Xen's own libxenvchan, whose grants are pages of a file, whose events are bytes in pipes and
 * whose xenstore says what the command line says. Echoes what it reads until the other end leaves.
 *
 *   vchan_peer server FILE LEFT RIGHT        vchan_peer client FILE
 *
 * Standard input brings events, standard output takes them. Reference n is page n of the file.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <libxenvchan.h>
#include <xengnttab.h>
#include <xenevtchn.h>
#include <xenstore.h>

static char *memory;
static uint32_t next_page = 1;
static char token;

#define HANDLE ((void *)&token)

struct xs_handle *xs_open(unsigned long flags) { return HANDLE; }
void xs_close(struct xs_handle *xs) { }
xs_transaction_t xs_transaction_start(struct xs_handle *xs) { return 1; }
bool xs_transaction_end(struct xs_handle *xs, xs_transaction_t t, bool abort) { return true; }
bool xs_write(struct xs_handle *xs, xs_transaction_t t, const char *path, const void *data, unsigned int len)
{ return true; }
bool xs_set_permissions(struct xs_handle *xs, xs_transaction_t t, const char *path, struct xs_permissions *perms,
                        unsigned int count)
{ return true; }
bool xs_rm(struct xs_handle *xs, xs_transaction_t t, const char *path) { return true; }
void *xs_read(struct xs_handle *xs, xs_transaction_t t, const char *path, unsigned int *len) { return strdup("1"); }

xengntshr_handle *xengntshr_open(struct xentoollog_logger *logger, unsigned flags) { return HANDLE; }
int xengntshr_close(xengntshr_handle *handle) { return 0; }
int xengntshr_unshare(xengntshr_handle *handle, void *start, uint32_t count) { return 0; }
void *xengntshr_share_pages(xengntshr_handle *handle, uint32_t domid, int count, uint32_t *refs, int writable)
{
    char *start = memory + 4096 * next_page;

    while (count--)
        *refs++ = next_page++;
    return start;
}
void *xengntshr_share_page_notify(xengntshr_handle *handle, uint32_t domid, uint32_t *ref, int writable,
                                  uint32_t offset, evtchn_port_t port)
{ return xengntshr_share_pages(handle, domid, 1, ref, writable); }

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned flags) { return HANDLE; }
int xengnttab_close(xengnttab_handle *handle) { return 0; }
int xengnttab_unmap(xengnttab_handle *handle, void *start, uint32_t count) { return 0; }
void *xengnttab_map_domain_grant_refs(xengnttab_handle *handle, uint32_t count, uint32_t domid, uint32_t *refs,
                                      int prot)
{
    for (uint32_t i = 1; i < count; i++)
        if (refs[i] != refs[0] + i)
            return NULL;
    return memory + 4096 * refs[0];
}
void *xengnttab_map_grant_ref_notify(xengnttab_handle *handle, uint32_t domid, uint32_t ref, int prot,
                                     uint32_t offset, evtchn_port_t port)
{ return memory + 4096 * ref; }

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned flags) { return HANDLE; }
int xenevtchn_close(xenevtchn_handle *handle) { return 0; }
int xenevtchn_fd(xenevtchn_handle *handle) { return 0; }
int xenevtchn_notify(xenevtchn_handle *handle, evtchn_port_t port) { return write(1, "!", 1) == 1 ? 0 : -1; }
xenevtchn_port_or_error_t xenevtchn_bind_unbound_port(xenevtchn_handle *handle, uint32_t domid) { return 1; }
xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *handle, uint32_t domid, evtchn_port_t port)
{ return 1; }
int xenevtchn_unbind(xenevtchn_handle *handle, evtchn_port_t port) { return 0; }
int xenevtchn_unmask(xenevtchn_handle *handle, evtchn_port_t port) { return 0; }
xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *handle) { char c; return read(0, &c, 1) == 1 ? 1 : -1; }

int main(int argc, char **argv)
{
    struct libxenvchan *channel;
    static char buffer[3001];
    int fd = open(argv[2], O_RDWR);

    memory = mmap(NULL, 1024 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return 2;
    if (!strcmp(argv[1], "server"))
        channel = libxenvchan_server_init(NULL, 2, "data/vchan/test", atoi(argv[3]), atoi(argv[4]));
    else
        channel = libxenvchan_client_init(NULL, 1, "data/vchan/test");
    if (!channel)
        return 3;
    if (!strcmp(argv[1], "server") && write(1, "!", 1) != 1)
        return 4;
    channel->blocking = 1;
    for (;;) {
        int size = libxenvchan_read(channel, buffer, sizeof(buffer));

        if (size <= 0)
            break;
        for (int done = 0; done < size; ) {
            int written = libxenvchan_write(channel, buffer + done, size - done);

            if (written <= 0)
                return 5;
            done += written;
        }
    }
    libxenvchan_close(channel);
    return 0;
}
