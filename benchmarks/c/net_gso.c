/*
 * The reference for large TCP packets in the network benchmark: what net_ring.c does, with packets of 64 KiB.
 *
 * Guest A puts a packet on its tx ring: a slot for each page, and one of extra info (segmentation offload). The backend
 * copies the requests out, copies the data into pages of its own (what grant copies do), looks the destination address
 * up, copies the data into as many buffers that guest B has posted, writes extra info behind the first, and answers
 * both. B takes the packet and posts the buffers again; A takes its responses. The rings are Xen's own.
 *
 * usage: net_gso SECONDS        prints: packets per second of processor time
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

enum { PAGE = 4096, SIZE = 65535, SLOTS = 16, BUFFERS = 256, BURST = 14, STATIONS = 256, MSS = 1448 };

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

static netif_tx_front_ring_t tx_front;
static netif_tx_back_ring_t tx_back;
static netif_rx_front_ring_t rx_front;
static netif_rx_back_ring_t rx_back;

static int length_of(int slot)
{
    return slot < SLOTS - 1 ? PAGE : SIZE - (SLOTS - 1) * PAGE;
}

/* Guest A: one packet. */
static void send_packet(void)
{
    for (int slot = 0; slot < SLOTS; slot++) {
        netif_tx_request_t *request = RING_GET_REQUEST(&tx_front, tx_front.req_prod_pvt);
        int id = tx_front.req_prod_pvt++ % BUFFERS;
        if (!slot)
            memcpy(tx_data[id], "\x00\x16\x3e\x56\x00\x00\x00\x16\x3e\x57\x00\x00\x08\x00", 14);
        request->gref = id;
        request->offset = 0;
        request->flags = (slot < SLOTS - 1 ? NETTXF_more_data : 0) |
                         (slot ? 0 : NETTXF_extra_info | NETTXF_csum_blank | NETTXF_data_validated);
        request->id = id;
        request->size = slot ? length_of(slot) : SIZE;
        if (!slot) {
            struct netif_extra_info *extra = (void *)RING_GET_REQUEST(&tx_front, tx_front.req_prod_pvt++);
            memset(extra, 0, sizeof(*extra));
            extra->type = XEN_NETIF_EXTRA_TYPE_GSO;
            extra->u.gso.size = MSS;
            extra->u.gso.type = XEN_NETIF_GSO_TYPE_TCPV4;
        }
    }
}

/* The backend: one packet from A to B, by way of pages of its own. */
static void carry_packet(void)
{
    netif_tx_request_t tx[SLOTS];
    struct netif_extra_info extra = {0};
    for (int slot = 0; slot < SLOTS; slot++) {
        RING_COPY_REQUEST(&tx_back, tx_back.req_cons, &tx[slot]);
        tx_back.req_cons++;
        if (!slot)
            memcpy(&extra, RING_GET_REQUEST(&tx_back, tx_back.req_cons++), sizeof(extra));
    }
    for (int slot = 0; slot < SLOTS; slot++)
        memcpy(skb[slot], tx_data[tx[slot].gref % BUFFERS] + tx[slot].offset, length_of(slot));
    learn(mac_at(skb[0] + 6), 0);
    for (int slot = 0; lookup(mac_at(skb[0])) == 1 && slot < SLOTS; slot++) {
        netif_rx_request_t rx;
        RING_COPY_REQUEST(&rx_back, rx_back.req_cons, &rx);
        rx_back.req_cons++;
        memcpy(rx_data[rx.gref % BUFFERS], skb[slot], length_of(slot));
        netif_rx_response_t *answer = RING_GET_RESPONSE(&rx_back, rx_back.rsp_prod_pvt++);
        answer->id = rx.id;
        answer->offset = 0;
        answer->flags = (slot < SLOTS - 1 ? NETRXF_more_data : 0) |
                        (slot ? 0 : NETRXF_extra_info | NETRXF_csum_blank | NETRXF_data_validated);
        answer->status = length_of(slot);
        if (!slot) {
            rx_back.req_cons++;
            memcpy(RING_GET_RESPONSE(&rx_back, rx_back.rsp_prod_pvt++), &extra, sizeof(netif_rx_response_t));
        }
    }
    for (int slot = 0; slot < SLOTS; slot++) {
        netif_tx_response_t *response = RING_GET_RESPONSE(&tx_back, tx_back.rsp_prod_pvt++);
        response->id = tx[slot].id;
        response->status = NETIF_RSP_OKAY;
        if (!slot)
            RING_GET_RESPONSE(&tx_back, tx_back.rsp_prod_pvt++)->status = NETIF_RSP_NULL;
    }
}

/* Guest B: what has come; returns how many packets. */
static int receive(void)
{
    int packets = 0, is_extra = 0;
    while (RING_HAS_UNCONSUMED_RESPONSES(&rx_front)) {
        /* The request that was in this slot: extra info has no id. */
        int id = rx_front.rsp_cons % BUFFERS;
        netif_rx_response_t *answer = RING_GET_RESPONSE(&rx_front, rx_front.rsp_cons++);
        if (!is_extra && !(answer->flags & NETRXF_more_data))
            packets++;
        is_extra = !is_extra && (answer->flags & NETRXF_extra_info);
        netif_rx_request_t *request = RING_GET_REQUEST(&rx_front, rx_front.req_prod_pvt++);
        request->id = id;
        request->gref = id;
    }
    return packets;
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 1.0;
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
        memset(tx_data[i], i, PAGE);
        netif_rx_request_t *request = RING_GET_REQUEST(&rx_front, rx_front.req_prod_pvt++);
        request->id = i;
        request->gref = i;
    }
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&rx_front, notify);

    double end = now() + seconds, start = now();
    while (now() < end) {
        for (int round = 0; round < 16; round++) {
            for (int i = 0; i < BURST; i++)
                send_packet();
            RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&tx_front, notify);
            do {
                RING_IDX produced = tx_back.sring->req_prod;
                while (tx_back.req_cons != produced)
                    carry_packet();
                RING_FINAL_CHECK_FOR_REQUESTS(&tx_back, more);
            } while (more);
            RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&tx_back, notify);
            RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&rx_back, notify);
            packets += receive();
            RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&rx_front, notify);
            tx_front.rsp_cons = tx_front.sring->rsp_prod;
            RING_FINAL_CHECK_FOR_RESPONSES(&tx_front, more);
        }
    }
    (void)notify;
    printf("%.0f\n", packets / (now() - start));
    return 0;
}
