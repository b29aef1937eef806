/*
 * The reference for the network benchmark: the same work as two frontends, a backend and a bridge do, in one C loop.
 *
 * Guest A puts 1500-byte frames on its tx ring; the backend copies each request out, copies the data into a buffer of
 * its own (what a grant copy does), looks the destination address up, copies the data into a buffer that guest B has
 * posted, and answers both; B takes the frame and posts the buffer again; A takes its responses. The rings are Xen's
 * own (xen/io/ring.h, xen/io/netif.h). A burst is as many frames as fit into half a ring.
 *
 * usage: net_ring SECONDS        prints: packets per second of processor time
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define mb() __sync_synchronize()
#define rmb() __asm__ __volatile__("" ::: "memory")
#define wmb() __asm__ __volatile__("" ::: "memory")
typedef uint16_t domid_t;
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/io/ring.h>
#include <xen/io/netif.h>

enum { PAGE = 4096, SIZE = 1500, BUFFERS = 256, BURST = 128, STATIONS = 256 };

static char tx_page[PAGE] __attribute__((aligned(4096)));
static char rx_page[PAGE] __attribute__((aligned(4096)));
static char tx_data[BUFFERS][PAGE] __attribute__((aligned(4096)));
static char rx_data[BUFFERS][PAGE] __attribute__((aligned(4096)));
static char skb[BUFFERS][PAGE] __attribute__((aligned(4096)));
static struct station { uint64_t mac; int port; } stations[STATIONS];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint64_t mac_at(const char *frame)
{
    uint64_t word = 0;
    memcpy(&word, frame, 6);
    return word;
}

static int lookup(uint64_t mac)
{
    struct station *entry = &stations[(mac * 0x9E3779B97F4A7C15ull) >> 56];
    return entry->mac == mac ? entry->port : -1;
}

static void learn(uint64_t mac, int port)
{
    struct station *entry = &stations[(mac * 0x9E3779B97F4A7C15ull) >> 56];
    entry->mac = mac;
    entry->port = port;
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 1.0;
    netif_tx_front_ring_t tx_front;
    netif_tx_back_ring_t tx_back;
    netif_rx_front_ring_t rx_front;
    netif_rx_back_ring_t rx_back;
    uint64_t packets = 0;
    int notify, more;

    SHARED_RING_INIT((netif_tx_sring_t *)tx_page);
    SHARED_RING_INIT((netif_rx_sring_t *)rx_page);
    FRONT_RING_INIT(&tx_front, (netif_tx_sring_t *)tx_page, PAGE);
    BACK_RING_INIT(&tx_back, (netif_tx_sring_t *)tx_page, PAGE);
    FRONT_RING_INIT(&rx_front, (netif_rx_sring_t *)rx_page, PAGE);
    BACK_RING_INIT(&rx_back, (netif_rx_sring_t *)rx_page, PAGE);
    learn(0x0000563e1600ull, 1);
    for (int i = 0; i < BUFFERS; i++) {
        memset(tx_data[i], i, SIZE);
        memcpy(tx_data[i], "\x00\x16\x3e\x56\x00\x00\x00\x16\x3e\x57\x00\x00\x08\x00", 14);
        netif_rx_request_t *request = RING_GET_REQUEST(&rx_front, rx_front.req_prod_pvt++);
        request->id = i;
        request->gref = i;
    }
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&rx_front, notify);

    double end = now() + seconds, start = now();
    while (now() < end) {
        for (int round = 0; round < 64; round++) {
            for (int i = 0; i < BURST && !RING_FULL(&tx_front); i++) {
                netif_tx_request_t *request = RING_GET_REQUEST(&tx_front, tx_front.req_prod_pvt);
                int id = tx_front.req_prod_pvt++ % BUFFERS;
                request->gref = id;
                request->offset = 0;
                request->flags = 0;
                request->id = id;
                request->size = SIZE;
            }
            RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&tx_front, notify);
            do {
                RING_IDX produced = tx_back.sring->req_prod;
                while (tx_back.req_cons != produced) {
                    netif_tx_request_t tx;
                    netif_rx_request_t rx;
                    RING_COPY_REQUEST(&tx_back, tx_back.req_cons, &tx);
                    tx_back.req_cons++;
                    char *frame = skb[tx.id % BUFFERS];
                    memcpy(frame, tx_data[tx.gref % BUFFERS] + tx.offset, tx.size);
                    learn(mac_at(frame + 6), 0);
                    if (lookup(mac_at(frame)) == 1 && RING_HAS_UNCONSUMED_REQUESTS(&rx_back)) {
                        RING_COPY_REQUEST(&rx_back, rx_back.req_cons, &rx);
                        rx_back.req_cons++;
                        memcpy(rx_data[rx.gref % BUFFERS], frame, tx.size);
                        netif_rx_response_t *answer = RING_GET_RESPONSE(&rx_back, rx_back.rsp_prod_pvt++);
                        answer->id = rx.id;
                        answer->offset = 0;
                        answer->flags = 0;
                        answer->status = tx.size;
                    }
                    netif_tx_response_t *response = RING_GET_RESPONSE(&tx_back, tx_back.rsp_prod_pvt++);
                    response->id = tx.id;
                    response->status = NETIF_RSP_OKAY;
                }
                RING_FINAL_CHECK_FOR_REQUESTS(&tx_back, more);
            } while (more);
            RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&tx_back, notify);
            RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&rx_back, notify);
            while (RING_HAS_UNCONSUMED_RESPONSES(&rx_front)) {
                netif_rx_response_t *answer = RING_GET_RESPONSE(&rx_front, rx_front.rsp_cons++);
                int id = answer->id;
                packets += rx_data[id][12] == 8;
                netif_rx_request_t *request = RING_GET_REQUEST(&rx_front, rx_front.req_prod_pvt++);
                request->id = id;
                request->gref = id;
            }
            RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&rx_front, notify);
            tx_front.rsp_cons = tx_front.sring->rsp_prod;
            RING_FINAL_CHECK_FOR_RESPONSES(&tx_front, more);
        }
    }
    (void)notify;
    printf("%.0f\n", packets / (now() - start));
    return 0;
}
