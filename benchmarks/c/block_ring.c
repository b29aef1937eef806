/* What a block ring costs in C: Xen's own ring.h and blkif.h, both ends in one process, an image file read with pread.
 *
 * usage: block_ring IMAGE SLICES
 * prints one line for each load: name, and requests and nanoseconds of the best of SLICES slices of 20 ms;
 * time is that of the processor, so that a busy machine disturbs little
 *
 *   qd1    4 KiB, one request in flight; each end is a context of its own, and a notification is a swapcontext
 *   qd32   4 KiB, a full ring; both ends in one loop
 *   large  44 KiB in 11 segments, a full ring; both ends in one loop
 *   persistent  the same, and the frontend copies the data out of the granted pages into a buffer of its user's
 *   indirect    1 MiB in 256 segments, four requests; both ends in one loop, with the same copy
 *   lent        the same without it
 *
 * Reads are sequential and begin again at the end of the image. Grants are a table from reference to page; the data
 * lands in the granted page, as in a driver domain whose disk does DMA. That is the only copy of qd1, qd32 and large:
 * their frontend would grant its user's own pages, and do so for each request, which costs nothing here. Pages that
 * stay granted are the driver's, so the data is copied once more (Linux's blkfront does that, too): persistent and
 * indirect. Indirect descriptors are written anew for each request, copied out of their granted page, and checked;
 * what is adjacent in memory becomes one element of the vector, and all 256 pages of a request are.
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
#define RING_SLOTS 32
#define LARGE_SLOTS 4
#define LARGE_SEGMENTS 256
#define FIRST_LARGE (RING_SLOTS * SEGMENTS)
#define REFERENCES (FIRST_LARGE + LARGE_SLOTS * LARGE_SEGMENTS)
#define FIRST_TABLE REFERENCES

static blkif_sring_t *shared;
static blkif_front_ring_t front;
static blkif_back_ring_t back;
static unsigned char *granted[REFERENCES + LARGE_SLOTS];
static unsigned char *user[RING_SLOTS];
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

static void put_indirect(unsigned id)
{
    blkif_request_indirect_t *request = (void *)RING_GET_REQUEST(&front, front.req_prod_pvt);
    struct blkif_request_segment *table = (void *)granted[FIRST_TABLE + id];
    unsigned n;

    for (n = 0; n < LARGE_SEGMENTS; n++) {
        table[n].gref = FIRST_LARGE + id * LARGE_SEGMENTS + n;
        table[n].first_sect = 0;
        table[n].last_sect = 7;
    }
    request->operation = BLKIF_OP_INDIRECT;
    request->indirect_op = BLKIF_OP_READ;
    request->nr_segments = LARGE_SEGMENTS;
    request->handle = 0;
    request->id = id;
    request->sector_number = next_sector;
    request->indirect_grefs[0] = FIRST_TABLE + id;
}

static void put_direct(unsigned id, unsigned segments)
{
    blkif_request_t *request = RING_GET_REQUEST(&front, front.req_prod_pvt);
    unsigned n;

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
}

static void put_request(unsigned id, unsigned segments)
{
    if (next_sector + segments * 8 > sectors)
        next_sector = 0;
    if (segments > SEGMENTS)
        put_indirect(id);
    else
        put_direct(id, segments);
    next_sector += segments * 8;
    front.req_prod_pvt++;
}

static void perform_indirect(const blkif_request_indirect_t *request, blkif_response_t *response)
{
    struct blkif_request_segment table[LARGE_SEGMENTS];
    struct iovec vector[LARGE_SEGMENTS];
    unsigned n, used = 0, segments = request->nr_segments, page = request->indirect_grefs[0];
    size_t size = 0;

    response->id = request->id;
    response->operation = request->indirect_op;
    response->status = BLKIF_RSP_ERROR;
    if (segments == 0 || segments > LARGE_SEGMENTS || request->indirect_op != BLKIF_OP_READ)
        return;
    if (page < FIRST_TABLE || page >= FIRST_TABLE + LARGE_SLOTS)
        return;
    memcpy(table, granted[page], segments * sizeof(table[0]));
    for (n = 0; n < segments; n++) {
        const struct blkif_request_segment *seg = &table[n];
        unsigned char *start;
        size_t length;
        if (seg->gref >= REFERENCES || seg->first_sect > seg->last_sect || seg->last_sect > 7)
            return;
        start = granted[seg->gref] + seg->first_sect * 512;
        length = (size_t)(seg->last_sect - seg->first_sect + 1) * 512;
        if (used && (unsigned char *)vector[used - 1].iov_base + vector[used - 1].iov_len == start)
            vector[used - 1].iov_len += length;
        else {
            vector[used].iov_base = start;
            vector[used++].iov_len = length;
        }
        size += length;
    }
    if (request->sector_number + size / 512 > sectors)
        return;
    if (preadv(image, vector, (int)used, (off_t)(request->sector_number * 512)) == (ssize_t)size)
        response->status = BLKIF_RSP_OKAY;
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
            if (request.operation == BLKIF_OP_INDIRECT)
                perform_indirect((void *)&request, &response);
            else
                perform(&request, &response);
            memcpy(RING_GET_RESPONSE(&back, back.rsp_prod_pvt), &response, sizeof(response));
            back.rsp_prod_pvt++;
        }
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, notify);
        RING_FINAL_CHECK_FOR_REQUESTS(&back, more);
    } while (more);
    return notify;
}

/* Give the user the data of a request. */
static void copy_out(unsigned id, unsigned segments)
{
    unsigned n, first = segments > SEGMENTS ? FIRST_LARGE + id * LARGE_SEGMENTS : id * SEGMENTS;

    if (segments > SEGMENTS) {
        memcpy(user[id], granted[first], segments * PAGE);
        return;
    }
    for (n = 0; n < segments; n++)
        memcpy(user[id] + n * PAGE, granted[first + n], PAGE);
}

/* Take all responses, putting a new request for each as long as there is time. */
static void take(unsigned segments, int again, int copy)
{
    int more;

    do {
        while (XEN_RING_NR_UNCONSUMED_RESPONSES(&front)) {
            blkif_response_t response;
            RING_COPY_RESPONSE(&front, front.rsp_cons, &response);
            front.rsp_cons++;
            completed++;
            failed |= response.status != BLKIF_RSP_OKAY;
            if (copy)
                copy_out((unsigned)response.id, segments);
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
static uint64_t slice(unsigned depth, unsigned segments, int contexts, int copy, uint64_t *ns)
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
        if (segments > SEGMENTS || ++loops % 64 == 0)
            again = now() < stop;
        take(segments, again, copy);
    }
    *ns = now() - start;
    return completed;
}

static void run(const char *name, unsigned depth, unsigned segments, int contexts, int copy, int slices)
{
    uint64_t best = 0, best_ns = 1, count, ns;

    next_sector = 0;
    while (slices-- > 0) {
        count = slice(depth, segments, contexts, copy, &ns);
        if ((double)count * (double)best_ns > (double)best * (double)ns) {
            best = count;
            best_ns = ns;
        }
    }
    printf("%s %llu %llu\n", name, (unsigned long long)best, (unsigned long long)best_ns);
}

static unsigned char *allocate(size_t size)
{
    unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 0, size);
    return memory;
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
    for (n = 0; n < FIRST_LARGE; n++)
        granted[n] = allocate(PAGE);
    for (n = 0; n < LARGE_SLOTS * LARGE_SEGMENTS; n++)
        granted[FIRST_LARGE + n] =
            n % LARGE_SEGMENTS ? granted[FIRST_LARGE + n - 1] + PAGE : allocate(LARGE_SEGMENTS * PAGE);
    for (n = 0; n < LARGE_SLOTS; n++)
        granted[FIRST_TABLE + n] = allocate(PAGE);
    for (n = 0; n < RING_SLOTS; n++)
        user[n] = allocate((n < LARGE_SLOTS ? LARGE_SEGMENTS : SEGMENTS) * PAGE);
    getcontext(&back_context);
    back_context.uc_stack.ss_sp = stack;
    back_context.uc_stack.ss_size = sizeof(stack);
    back_context.uc_link = NULL;
    makecontext(&back_context, back_main, 0);

    run("qd1", 1, 1, 1, 0, slices);
    run("qd32", RING_SLOTS, 1, 0, 0, slices);
    run("large", RING_SLOTS, SEGMENTS, 0, 0, slices);
    run("persistent", RING_SLOTS, SEGMENTS, 0, 1, slices);
    run("indirect", LARGE_SLOTS, LARGE_SEGMENTS, 0, 1, slices);
    run("lent", LARGE_SLOTS, LARGE_SEGMENTS, 0, 0, slices);
    return failed;
}
