/*
 * A network frontend in C: the interface of a guest whose wishes come as jobs, through Xen's own headers and
 * paravirt_wire.h.
 *
 *     make && paravirt check serve --suite netif-frontend --socket /tmp/check.sock -- ./frontend
 *
 * `make FAULT=1` and so on builds it with a fault, which the kit finds (see README.md).
 *
 * Copyright the paravirt authors. SPDX-License-Identifier: MIT
 */
#include <stdbool.h>
#include <stdint.h>

#include "driver.h"
#include <xen/io/netif.h>

#include "bus.h"
#include "checksum.h"
#include "paravirt_wire.h"

#define HOME "device/vif/0"
#define SENDS 256
#define BUFFERS 64
#define MAX_SLOTS XEN_NETIF_NR_SLOTS_MIN
#define LONGEST 0xffffu                  /* the size of a frame is a number of 16 bits */

/* A frame that the guest wants sent. */
struct job {
	struct job *next;
	uint32_t number, size;
	struct pw_send offload;
	uint8_t data[];
};

/* A page that the backend may read, or write: granted as long as the device lives. */
struct page {
	bool granted, busy;
	uint32_t page, ref;
};

static struct pw pw;
static struct bus bus = { .home = HOME };    /* the other end is empty: there is no device */
static uint32_t port;
static struct page rings[2], sends[SENDS], buffers[BUFFERS];
static netif_tx_front_ring_t tx;
static netif_rx_front_ring_t rx;
static uint16_t posted[256];             /* which buffer is in which slot of the rx ring */
static struct job *jobs;
static bool scatter, carrier = true, listening;
static enum { UNUSED, WAITING, CONNECTED, GONE } life;

/* The frame that is being received. */
static uint8_t frame[MAX_SLOTS * PW_PAGE_SIZE];
static size_t frame_size;
static unsigned frame_slots;
static bool frame_bad, frame_blank;

/* ---- pages */

static int grant(struct page *page, uint16_t flags)
{
	int error = page->granted ? 0 : pw_alloc(&pw, &page->page);

	if (error || page->granted)
		return error;
	error = pw_grant(&pw, bus.domid, flags, page->page, &page->ref);
	if (error)
		pw_free(&pw, page->page);
	page->granted = !error;
	return error;
}

/* Take pages back; one that the backend still maps is left, until the next time (XSA-396). */
static void take_back(struct page *pages, unsigned count)
{
	for (unsigned n = 0; n < count; n++) {
		if (!pages[n].granted || pw_end_access(&pw, pages[n].ref))
			continue;
		pw_free(&pw, pages[n].page);
		pages[n].granted = false;
	}
}

/* ---- sending */

static void take(const struct pw_news *news)
{
	struct job *job, **end = &jobs;

	if (news->job_kind != PW_JOB_SEND) {
		listening |= news->job_kind == PW_JOB_LISTEN;
		pw_done(&pw, news->job, 0, NULL, 0);
		return;
	}
	job = malloc(sizeof *job + news->length);
	*job = (struct job){ .number = news->job, .size = news->length, .offload = news->send };
	memcpy(job->data, news->data, news->length);
	while (*end)
		end = &(*end)->next;
	*end = job;
}

/* Whether a frame can be sent at all: 0, or an errno. */
static int refusal(const struct job *job)
{
	if (life == GONE || !carrier)
		return -ENETDOWN;
	if (job->offload.gso_size)
		return -EOPNOTSUPP;
	return job->size > (scatter ? LONGEST : PW_PAGE_SIZE) ? -EMSGSIZE : 0;
}

/* Write the slots of a frame: -EAGAIN if there is no room. */
static int put(struct job *job)
{
	unsigned count = (job->size + PW_PAGE_SIZE - 1) / PW_PAGE_SIZE, found = 0;
	uint16_t slot[MAX_SLOTS];

	for (unsigned n = 0; n < SENDS && found < count; n++)
		if (!sends[n].busy)
			slot[found++] = (uint16_t)n;
	if (found < count || RING_FREE_REQUESTS(&tx) < count)
		return -EAGAIN;
	for (unsigned n = 0; n < count; n++)
		if (grant(&sends[slot[n]], PW_READONLY))
			return -ENOMEM;
	if (job->offload.csum_start)
		fill_checksum(job->data, job->size);
	for (unsigned n = 0; n < count; n++) {
		uint32_t left = job->size - n * PW_PAGE_SIZE, size = left < PW_PAGE_SIZE ? left : PW_PAGE_SIZE;
		struct page *page = &sends[slot[n]];
		netif_tx_request_t *request = RING_GET_REQUEST(&tx, tx.req_prod_pvt++);
		memcpy(pw_page(&pw, page->page), job->data + n * PW_PAGE_SIZE, size);
		page->busy = FAULT != 2;
		/* The first slot tells the size of the whole. */
		*request = (netif_tx_request_t){
			.gref = page->ref, .id = slot[n], .size = (uint16_t)(n ? size : job->size),
			.flags = n < count - 1 ? NETTXF_more_data : 0,
		};
	}
	return 0;
}

/* Send what can be sent, in the order in which it was asked for. */
static void work(void)
{
	bool any = false;
	int notify;

	while (jobs && life != UNUSED && life != WAITING) {
		struct job *job = jobs;
		int error = refusal(job);
		if (!error)
			error = put(job);
		if (error == -EAGAIN)
			break;
		any |= !error;
		jobs = job->next;
		pw_done(&pw, job->number, error, NULL, 0);
		free(job);
	}
	if (!any)
		return;
	RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&tx, notify);
	if (notify)
		pw_notify(&pw, port);
}

/* The backend lies: nothing that it has said is believed, and nothing is sent to it any more. */
static void give_up(const char *why)
{
	pw_log(&pw, why);
	life = GONE;
	bus_switch(&pw, &bus, bus_state(&pw, bus.home), XenbusStateClosing);
}

static void collect_answers(void)
{
	int more;

	do {
		RING_IDX produced = tx.sring->rsp_prod;
		xen_rmb();
		if (produced - tx.rsp_cons > tx.req_prod_pvt - tx.rsp_cons) {
			give_up("more answers than requests");
			return;
		}
		while (tx.rsp_cons != produced) {
			netif_tx_response_t response;
			RING_COPY_RESPONSE(&tx, tx.rsp_cons, &response);
			if (response.id >= SENDS || (!sends[response.id].busy && FAULT != 2)) {
				give_up("an answer to nothing");
				return;
			}
			/* (A frame that was not taken is lost, as on any Ethernet.) */
			sends[response.id].busy = false;
			tx.rsp_cons++;
		}
		RING_FINAL_CHECK_FOR_RESPONSES(&tx, more);
	} while (more);
}

/* ---- receiving */

static void post(uint16_t buffer)
{
	*RING_GET_REQUEST(&rx, rx.req_prod_pvt) = (netif_rx_request_t){ .id = buffer, .gref = buffers[buffer].ref };
	posted[rx.req_prod_pvt % RING_SIZE(&rx)] = buffer;
	rx.req_prod_pvt++;
}

/* Tell the guest of the frame that has come, if it is whole. */
static void deliver(void)
{
	if (listening && !frame_bad && frame_size && frame_size <= LONGEST) {
		if (frame_blank)
			fill_checksum(frame, frame_size);
		pw_frame(&pw, frame, frame_size);
	}
	frame_size = frame_slots = 0;
	frame_bad = frame_blank = false;
}

/* Take the data of one slot, of which nothing is believed; what is wrong with it, or NULL. */
static const char *receive(const netif_rx_response_t *response, uint16_t buffer)
{
	if (response->id != buffer)
		return "a frame in a buffer that is not its slot's";
	if (response->flags & (NETRXF_extra_info | NETRXF_gso_prefix))
		return "extra info, which nobody has asked for";
	if (++frame_slots > MAX_SLOTS)
		return "a frame without end";
	if (response->status > (int)PW_PAGE_SIZE - response->offset && FAULT != 3)
		return "a frame beyond its page";
	if (response->status < 0) {
		frame_bad = true;
	} else if (frame_size + (size_t)response->status <= sizeof frame) {
		memcpy(frame + frame_size, (uint8_t *)pw_page(&pw, buffers[buffer].page) + response->offset,
		       (size_t)response->status);
		frame_size += (size_t)response->status;
	}
	frame_blank |= response->flags & NETRXF_csum_blank;
	if (!(response->flags & NETRXF_more_data))
		deliver();
	return NULL;
}

static void collect_frames(void)
{
	int more, notify;

	do {
		RING_IDX produced = rx.sring->rsp_prod;
		xen_rmb();
		if (produced - rx.rsp_cons > rx.req_prod_pvt - rx.rsp_cons) {
			give_up("more frames than buffers");
			return;
		}
		while (rx.rsp_cons != produced) {
			netif_rx_response_t response;
			uint16_t buffer = posted[rx.rsp_cons % RING_SIZE(&rx)];
			const char *wrong;
			RING_COPY_RESPONSE(&rx, rx.rsp_cons, &response);
			rx.rsp_cons++;
			wrong = receive(&response, buffer);
			if (wrong) {
				give_up(wrong);
				return;
			}
			post(buffer);
		}
		RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&rx, notify);
		if (notify)
			pw_notify(&pw, port);
		if (FAULT == 1)
			return;
		RING_FINAL_CHECK_FOR_RESPONSES(&rx, more);
	} while (more);
}

/* ---- the bus */

static long long theirs(const char *name)
{
	return pw_read_number(&pw, bus_node(bus.other, name));
}

/* Make the rings, post buffers, and say where everything is. */
static void publish(int own, int next)
{
	if (theirs("feature-rx-copy") != 1) {
		give_up("a backend that does not copy");
		return;
	}
	scatter = theirs("feature-sg") == 1;
	if (grant(&rings[0], 0) || grant(&rings[1], 0) || pw_alloc_unbound(&pw, bus.domid, &port))
		return;
	netif_tx_sring_t *tx_shared = pw_page(&pw, rings[0].page);
	netif_rx_sring_t *rx_shared = pw_page(&pw, rings[1].page);
	SHARED_RING_INIT(tx_shared);
	FRONT_RING_INIT(&tx, tx_shared, PW_PAGE_SIZE);
	SHARED_RING_INIT(rx_shared);
	FRONT_RING_INIT(&rx, rx_shared, PW_PAGE_SIZE);
	for (uint16_t n = 0; n < BUFFERS; n++)
		if (!grant(&buffers[n], 0))
			post(n);
	RING_PUSH_REQUESTS(&rx);
	const struct bus_value nodes[] = {
		{ "tx-ring-ref", rings[0].ref, NULL }, { "rx-ring-ref", rings[1].ref, NULL },
		{ "event-channel", port, NULL }, { "request-rx-copy", 1, NULL }, { "feature-rx-notify", 1, NULL },
		{ "feature-sg", 1, NULL }, { NULL, 0, NULL },
	};
	life = WAITING;
	bus_publish(&pw, &bus, nodes, own, next);
}

/* The backend is closing, or gone: what it has let go of comes back. */
static void close_vif(void)
{
	life = GONE;
	if (port)
		pw_close(&pw, port);
	port = 0;
	take_back(sends, SENDS);
	take_back(buffers, BUFFERS);
	take_back(rings, 2);
}

/* Find the interface, if there is one. */
static bool find(void)
{
	if (pw_read(&pw, HOME "/backend", bus.other, sizeof bus.other) || !bus.other[0])
		return false;
	bus.domid = (uint16_t)pw_read_number(&pw, HOME "/backend-id");
	pw_watch(&pw, bus_node(bus.other, "state"), "backend");
	pw_watch(&pw, bus_node(bus.other, "carrier"), "backend");
	return true;
}

static void forget(void)
{
	close_vif();
	pw_unwatch(&pw, bus_node(bus.other, "state"), "backend");
	pw_unwatch(&pw, bus_node(bus.other, "carrier"), "backend");
	bus.other[0] = 0;
	memset(sends, 0, sizeof sends);  /* (What is still mapped is left to the backend.) */
	memset(buffers, 0, sizeof buffers);
	memset(rings, 0, sizeof rings);
	frame_size = frame_slots = 0;
	life = UNUSED;
}

/* Look at both states, and do what they ask for. */
static void look(void)
{
	int own, next;

	if (!bus.other[0] && !find())
		return;
	carrier = theirs("carrier") != 0;
	/* (A network frontend is Connected as soon as it has published: its backend waits for that.) */
	switch (bus_look_front(&pw, &bus, life != UNUSED, XenbusStateConnected, &own, &next)) {
	case BUS_PUBLISH:
		publish(own, next);
		return;
	case BUS_CONNECT:
		if (life == WAITING)
			life = CONNECTED;
		return;
	case BUS_CLOSE:
		close_vif();
		if (next == XenbusStateInitialising) {
			forget();                /* and find the device that is there now */
			look();
		} else if (next != own) {
			bus_switch(&pw, &bus, own, next);
		}
		return;
	case BUS_FORGET:
		forget();
		return;
	case BUS_WAIT:
		return;
	}
}

int main(int argc, char **argv)
{
	struct pw_news news;
	int error = pw_connect(&pw, argc > 1 ? argv[1] : getenv("PARAVIRT_SOCKET"));

	if (error) {
		fprintf(stderr, "no connection: %s\n", strerror(-error));
		return 1;
	}
	pw_watch(&pw, "device/vif", "device");
	while (!pw_wait(&pw, PW_FOREVER)) {
		bool nodes = false, events = false;
		while (pw_next(&pw, &news)) {
			nodes |= news.kind == PW_WATCH;
			events |= news.kind == PW_EVENT;
			if (news.kind == PW_JOB)
				take(&news);
		}
		if (nodes) {
			look();
			events = true;           /* frames may have come before we were connected */
		}
		if (events && life == CONNECTED)
			collect_answers();
		if (events && life == CONNECTED)
			collect_frames();
		work();
	}
	return 0;                        /* the kit has hung up: the check is over */
}
