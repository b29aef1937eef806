/* Xen's own ring macros behind plain functions, so that a test can drive them beside the Python classes. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <xen/xen-compat.h>
#undef __XEN_INTERFACE_VERSION__
#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/grant_table.h>
#include <xen/io/ring.h>

#define RING_OF(tag, request, response)                                        \
    struct tag##_req { uint8_t bytes[request]; };                              \
    struct tag##_rsp { uint8_t bytes[response]; };                             \
    DEFINE_RING_TYPES(tag, struct tag##_req, struct tag##_rsp);                \
    unsigned tag##_const_size(unsigned bytes)                                  \
    { (void)bytes; return __CONST_RING_SIZE(tag, 4096); }                      \
    unsigned tag##_slot(void *page, unsigned bytes, unsigned index)            \
    {                                                                          \
        tag##_front_ring_t r;                                                  \
        FRONT_RING_INIT(&r, (tag##_sring_t *)page, bytes);                     \
        return (unsigned)((uint8_t *)RING_GET_REQUEST(&r, index) - (uint8_t *)page); \
    }                                                                          \
    unsigned tag##_nr_ents(void *page, unsigned bytes)                         \
    {                                                                          \
        tag##_front_ring_t r;                                                  \
        FRONT_RING_INIT(&r, (tag##_sring_t *)page, bytes);                     \
        return RING_SIZE(&r);                                                  \
    }

RING_OF(e112, 112, 16)
RING_OF(e108, 108, 12)
RING_OF(e12, 12, 8)
RING_OF(e8, 8, 8)
RING_OF(e16, 16, 16)

typedef e112_sring_t sring_t;
static e112_front_ring_t front;
static e112_back_ring_t back;

void ring_init(void *page, unsigned bytes) { XEN_FRONT_RING_INIT(&front, (sring_t *)page, bytes); BACK_RING_INIT(&back, (sring_t *)page, bytes); }
void front_attach(void *page, unsigned index, unsigned bytes) { FRONT_RING_ATTACH(&front, (sring_t *)page, index, bytes); }
void back_attach(void *page, unsigned index, unsigned bytes) { BACK_RING_ATTACH(&back, (sring_t *)page, index, bytes); }
void front_get(unsigned *out) { out[0] = front.req_prod_pvt; out[1] = front.rsp_cons; }
void back_get(unsigned *out) { out[0] = back.rsp_prod_pvt; out[1] = back.req_cons; }
void front_put(unsigned n) { front.req_prod_pvt += n; }
void front_take(unsigned n) { front.rsp_cons += n; }
void back_put(unsigned n) { back.rsp_prod_pvt += n; }
void back_take(unsigned n) { back.req_cons += n; }
unsigned front_free(void) { return RING_FREE_REQUESTS(&front); }
int front_full(void) { return RING_FULL(&front); }
unsigned front_unconsumed(void) { return XEN_RING_NR_UNCONSUMED_RESPONSES(&front); }
unsigned back_unconsumed(void) { return XEN_RING_NR_UNCONSUMED_REQUESTS(&back); }
int front_push_check(void) { int notify; RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&front, notify); return notify; }
int back_push_check(void) { int notify; RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&back, notify); return notify; }
void front_push(void) { RING_PUSH_REQUESTS(&front); }
void back_push(void) { RING_PUSH_RESPONSES(&back); }
unsigned front_final(void) { unsigned work; RING_FINAL_CHECK_FOR_RESPONSES(&front, work); return work; }
unsigned back_final(void) { unsigned work; RING_FINAL_CHECK_FOR_REQUESTS(&back, work); return work; }
int back_cons_overflow(unsigned cons) { return RING_REQUEST_CONS_OVERFLOW(&back, cons); }
int back_prod_overflow(unsigned prod) { return RING_REQUEST_PROD_OVERFLOW(&back, prod); }
int front_prod_overflow(unsigned prod) { return RING_RESPONSE_PROD_OVERFLOW(&front, prod); }
