/* What a block ring costs in C: Xen's own ring.h and blkif.h, both ends in one process, an image file read with pread.
 *
 * usage: block_ring IMAGE SLICES
 * prints one line for each of three loads: name, and requests and nanoseconds of the best of SLICES slices of 20 ms;
 * time is that of the processor, so that a busy machine disturbs little
 *
 *   qd1    4 KiB, one request in flight; each end is a context of its own, and a notification is a swapcontext
 *   qd32   4 KiB, a full ring; both ends in one loop
 *   large  44 KiB in 11 segments, a full ring; both ends in one loop
 *
 * Reads are sequential and begin again at the end of the image. Grants are a table from reference to page; the data
 * lands in the granted page, as in a driver domain whose disk does DMA.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <xen/xen-compat.h>
#undef __XEN_INTERFACE_VERSION__
#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/io/ring.h>
#include <xen/io/blkif.h>

#define PAGE 4096
#define SEGMENTS BLKIF_MAX_SEGMENTS_PER_REQUEST

static blkif_sring_t *shared;
static blkif_front_ring_t front;
static blkif_back_ring_t back;
static unsigned char *granted[32 * SEGMENTS];
static int image;
static uint64_t sectors, next_sector, completed;
static ucontext_t front_context, back_context;
static int failed;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void put_request(unsigned id, unsigned segments)
{
    blkif_request_t *request = RING_GET_REQUEST(&front, front.req_prod_pvt);
    unsigned n;

    if (next_sector + segments * 8 > sectors)
        next_sector = 0;
    request->operation = BLKIF_OP_READ;
    request->nr_segments = segments;
    request->handle = 0;
    request->id = id;
    request->sector_number = next_sector;
    for (n = 0; n < segments; n++) {
        request->seg[n].gref = id * SEGMENTS + n;
        request->seg[n].first_sect = 0;
        request->seg[n].last_sect = 7;
    }
    next_sector += segments * 8;
    front.req_prod_pvt++;
}

static void perform(const blkif_request_t *request, blkif_response_t *response)
{
    struct iovec vector[SEGMENTS];
    unsigned n, segments = request->nr_segments;
    size_t size = 0;
    ssize_t done;

    response->id = request->id;
    response->operation = request->operation;
    response->status = BLKIF_RSP_ERROR;
    if (segments == 0 || segments > SEGMENTS || request->operation != BLKIF_OP_READ)
        return;
    for (n = 0; n < segments; n++) {
        const struct blkif_request_segment *seg = &request->seg[n];
        if (seg->gref >= 32 * SEGMENTS || seg->first_sect > seg->last_sect || seg->last_sect > 7)
            return;
        vector[n].iov_base = granted[seg->gref] + seg->first_sect * 512;
        vector[n].iov_len = (size_t)(seg->last_sect - seg->first_sect + 1) * 512;
        size += vector[n].iov_len;
    }
    if (request->sector_number + size / 512 > sectors)
        return;
    if (segments == 1)
        done = pread(image, vector[0].iov_base, size, (off_t)(request->sector_number * 512));
    else
        done = preadv(image, vector, (int)segments, (off_t)(request->sector_number * 512));
    if (done == (ssize_t)size)
        response->status = BLKIF_RSP_OKAY;
}

/* Serve all requests; returns whether the frontend wants to be told. */
static int serve(void)
{
    int notify, more;

    do {
        while (XEN_RING_NR_UNCONSUMED_REQUESTS(&back)) {
            blkif_request_t request;
            blkif_response_t response;
            RING_COPY_REQUEST(&back, back.req_cons, &request);
            back.req_cons++;
            memset(&response, 0, sizeof(response));
            perform(&request, &response);
            memcpy(RING_GET_RESPONSE(&back, back.rsp_prod_pvt), &response, sizeof(response));
            back.rsp_prod_pvt++;
        }
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, notify);
        RING_FINAL_CHECK_FOR_REQUESTS(&back, more);
    } while (more);
    return notify;
}

/* Take all responses, putting a new request for each as long as there is time. */
static void take(unsigned segments, int again)
{
    int more;

    do {
        while (XEN_RING_NR_UNCONSUMED_RESPONSES(&front)) {
            blkif_response_t response;
            RING_COPY_RESPONSE(&front, front.rsp_cons, &response);
            front.rsp_cons++;
            completed++;
            failed |= response.status != BLKIF_RSP_OKAY;
            if (again)
                put_request((unsigned)response.id, segments);
        }
        RING_FINAL_CHECK_FOR_RESPONSES(&front, more);
    } while (more);
}

static void back_main(void)
{
    for (;;) {
        serve();
        swapcontext(&back_context, &front_context);
    }
}

/* One slice: returns the requests done, and in *ns how long they took. */
static uint64_t slice(unsigned depth, unsigned segments, int contexts, uint64_t *ns)
{
    uint64_t start, stop;
    unsigned n, loops = 0;
    int notify, again = 1;

    XEN_FRONT_RING_INIT(&front, shared, PAGE);
    BACK_RING_INIT(&back, shared, PAGE);
    completed = 0;
    start = now();
    stop = start + 20000000;
    for (n = 0; n < depth; n++)
        put_request(n, segments);
    while (front.req_prod_pvt != front.rsp_cons) {
        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&front, notify);
        if (contexts) {
            if (notify)
                swapcontext(&front_context, &back_context);
        } else
            serve();
        if (++loops % 64 == 0)
            again = now() < stop;
        take(segments, again);
    }
    *ns = now() - start;
    return completed;
}

static void run(const char *name, unsigned depth, unsigned segments, int contexts, int slices)
{
    uint64_t best = 0, best_ns = 1, count, ns;

    next_sector = 0;
    while (slices-- > 0) {
        count = slice(depth, segments, contexts, &ns);
        if ((double)count * (double)best_ns > (double)best * (double)ns) {
            best = count;
            best_ns = ns;
        }
    }
    printf("%s %llu %llu\n", name, (unsigned long long)best, (unsigned long long)best_ns);
}

int main(int argc, char **argv)
{
    static unsigned char stack[1 << 16];
    int slices;
    unsigned n;

    if (argc != 3 || (image = open(argv[1], O_RDONLY)) < 0) {
        fprintf(stderr, "usage: block_ring IMAGE SLICES\n");
        return 2;
    }
    slices = atoi(argv[2]);
    sectors = (uint64_t)lseek(image, 0, SEEK_END) / 512;
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (n = 0; n < 32 * SEGMENTS; n++) {
        granted[n] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        memset(granted[n], 0, PAGE);
    }
    getcontext(&back_context);
    back_context.uc_stack.ss_sp = stack;
    back_context.uc_stack.ss_size = sizeof(stack);
    back_context.uc_link = NULL;
    makecontext(&back_context, back_main, 0);

    run("qd1", 1, 1, 1, slices);
    run("qd32", 32, 1, 0, slices);
    run("large", 32, SEGMENTS, 0, slices);
    return failed;
}
