/*
 * A network backend in C: the interfaces of a guest, joined by a bridge, through Xen's own headers and paravirt_wire.h.
 *
 *     make && paravirt check serve --suite netif-backend --socket /tmp/check.sock -- ./backend
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

#define MAX_VIFS 4
#define MAX_SLOTS XEN_NETIF_NR_SLOTS_MIN
#define MAX_PAGES 16                     /* of a frame: 64 KiB */
#define MAX_WAITING 64                   /* frames for a guest that posts no buffers (XSA-392) */

/* A frame on its way. */
struct frame {
	struct frame *next;
	size_t size;
	uint16_t flags;                  /* those of netif_rx_response */
	uint8_t data[];
};

struct vif {
	struct bus bus;                  /* its home is empty: there is no such interface */
	bool connected, broken, scatter, wants_checksums;
	uint32_t ports[2], port_count, handles[2];
	netif_tx_back_ring_t tx;
	netif_rx_back_ring_t rx;
	struct frame *first, **last;     /* frames that wait for buffers */
	unsigned waiting;
};

/* What a guest wants sent, in a copy of our own: nobody can change what has been checked (XSA-155). */
struct packet {
	netif_tx_request_t slot[MAX_SLOTS];
	RING_IDX at[MAX_SLOTS];
	unsigned count, extras;
};

static struct pw pw;
static struct vif vifs[MAX_VIFS];
static uint32_t scratch[MAX_PAGES];      /* pages of our own, between two guests */

/* ---- nodes */

static long long front_says(const struct vif *vif, const char *name)
{
	return pw_read_number(&pw, bus_node(vif->bus.other, name));
}

/* The frontend has broken the protocol: its rings are not looked at any more. */
static void give_up(struct vif *vif)
{
	vif->broken = true;
	bus_fail(&pw, &vif->bus, "the rings are not what they should be");
}

/* ---- from the bridge to a guest */

static void respond_rx(struct vif *vif, uint16_t id, uint16_t flags, int16_t status)
{
	netif_rx_response_t *response = RING_GET_RESPONSE(&vif->rx, vif->rx.rsp_prod_pvt++);

	*response = (netif_rx_response_t){ .id = FAULT == 5 ? 0 : id, .flags = flags, .status = status };
}

/* Copy a frame into the next buffers, of which there are enough. */
static void deliver(struct vif *vif, const struct frame *frame, unsigned pages)
{
	netif_rx_request_t request[MAX_PAGES];
	struct pw_copy copies[MAX_PAGES];
	int32_t status[MAX_PAGES];
	uint16_t flags = frame->flags;

	memset(copies, 0, sizeof copies);
	for (unsigned n = 0; n < pages; n++) {
		size_t size = n < pages - 1 ? PW_PAGE_SIZE : frame->size - n * PW_PAGE_SIZE;
		RING_COPY_REQUEST(&vif->rx, vif->rx.req_cons, &request[n]);
		vif->rx.req_cons++;
		memcpy(pw_page(&pw, scratch[n]), frame->data + n * PW_PAGE_SIZE, size);
		copies[n].source = scratch[n];
		copies[n].dest = request[n].gref;
		copies[n].dest_domid = vif->bus.domid;
		copies[n].length = (uint16_t)size;
		copies[n].flags = PW_DEST_GREF;
	}
	if (pw_copy(&pw, copies, pages, status))
		memset(status, -1, sizeof status);
	for (unsigned n = 0; n < pages; n++, flags = 0)
		respond_rx(vif, request[n].id, flags | (n < pages - 1 ? NETRXF_more_data : 0),
			   status[n] ? NETIF_RSP_ERROR : (int16_t)copies[n].length);
}

/* Whether there are so many buffers; if not, ask to be told of them. */
static bool has_buffers(struct vif *vif, unsigned count)
{
	if (vif->rx.sring->req_prod - vif->rx.req_cons >= count)
		return true;
	vif->rx.sring->req_event = vif->rx.req_cons + count;
	xen_mb();
	return vif->rx.sring->req_prod - vif->rx.req_cons >= count;
}

/* Give a guest what waits for it, as far as its buffers go. */
static void flush(struct vif *vif)
{
	int notify;

	while (vif->connected && !vif->broken && vif->first) {
		struct frame *frame = vif->first;
		unsigned pages = (unsigned)((frame->size + PW_PAGE_SIZE - 1) / PW_PAGE_SIZE);
		RING_IDX produced = vif->rx.sring->req_prod;
		if (RING_REQUEST_PROD_OVERFLOW(&vif->rx, produced)) {
			give_up(vif);                    /* XSA-39 */
			return;
		}
		if (!has_buffers(vif, pages))
			break;
		xen_rmb();
		deliver(vif, frame, pages);
		vif->first = frame->next;
		vif->waiting--;
		free(frame);
	}
	if (!vif->first)
		vif->last = &vif->first;
	if (!vif->connected)
		return;
	RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&vif->rx, notify);
	if (notify)
		pw_notify(&pw, vif->ports[vif->port_count - 1]);
}

/* Bring a frame to all others. */
static void forward(const struct vif *from, const struct frame *frame)
{
	for (struct vif *vif = vifs; vif < vifs + MAX_VIFS; vif++) {
		struct frame *copy;
		if (vif == from || !vif->connected || vif->waiting == MAX_WAITING ||
		    (frame->size > PW_PAGE_SIZE && !vif->scatter))
			continue;
		copy = malloc(sizeof *copy + frame->size);
		memcpy(copy, frame, sizeof *frame + frame->size);
		if ((copy->flags & NETRXF_csum_blank) && vif->wants_checksums) {
			fill_checksum(copy->data, copy->size);
			copy->flags = NETRXF_data_validated;
		}
		copy->next = NULL;
		*vif->last = copy;
		vif->last = &copy->next;
		vif->waiting++;
		flush(vif);
	}
}

/* ---- from a guest to the bridge */

/* Take the slots of the next packet: 1 if it is there, 0 if its end has not come yet, -1 if it has none. */
static int gather(struct vif *vif, RING_IDX produced, struct packet *packet)
{
	RING_IDX at = vif->tx.req_cons;
	struct netif_extra_info info;

	packet->count = packet->extras = 0;
	do {
		if (packet->count == MAX_SLOTS)
			return -1;
		if (at == produced)
			return 0;
		packet->at[packet->count] = at;
		RING_COPY_REQUEST(&vif->tx, at, &packet->slot[packet->count]);
		at++;
		info.flags = !packet->count++ && (packet->slot[0].flags & NETTXF_extra_info) ? XEN_NETIF_EXTRA_FLAG_MORE : 0;
		while (info.flags & XEN_NETIF_EXTRA_FLAG_MORE) {
			if (packet->extras == XEN_NETIF_EXTRA_TYPE_MAX)
				return -1;
			if (at == produced)
				return 0;
			memcpy(&info, RING_GET_REQUEST(&vif->tx, at++), sizeof info);
			packet->extras++;
		}
	} while (packet->slot[packet->count - 1].flags & NETTXF_more_data);
	vif->tx.req_cons = at;
	return 1;
}

/* Copy the data of a packet into the pages between; false if it cannot be one. */
static bool fetch(struct vif *vif, const struct packet *packet)
{
	struct pw_copy copies[2 * MAX_SLOTS], *copy = copies;
	int32_t status[2 * MAX_SLOTS];
	uint32_t place = 0, left = packet->slot[0].size;
	uint64_t now;

	/* (Extra info is about what is not offered here: large packets, multicast, hashes.) */
	if (packet->extras || packet->slot[0].size < ETHERNET)
		return false;
	for (unsigned n = 1; n < packet->count; n++) {
		if (packet->slot[n].size > left)
			return false;
		left -= packet->slot[n].size;
	}
	if (FAULT == 2)
		pw_time(&pw, &now);              /* something takes a moment... */
	memset(copies, 0, sizeof copies);
	for (unsigned n = 0; n < packet->count; n++) {
		const netif_tx_request_t *slot = FAULT == 2 ? RING_GET_REQUEST(&vif->tx, packet->at[n]) : &packet->slot[n];
		uint32_t length = n ? packet->slot[n].size : left, offset = slot->offset;
		if (length && offset + length > PW_PAGE_SIZE)
			return false;
		while (length) {
			uint32_t to = place % PW_PAGE_SIZE;
			uint32_t size = length < PW_PAGE_SIZE - to ? length : PW_PAGE_SIZE - to;
			copy->source = slot->gref;
			copy->source_domid = vif->bus.domid;
			copy->source_offset = (uint16_t)offset;
			copy->dest = scratch[place / PW_PAGE_SIZE];
			copy->dest_offset = (uint16_t)to;
			copy->length = (uint16_t)size;
			copy->flags = PW_SOURCE_GREF;
			copy++;
			place += size;
			offset += size;
			length -= size;
		}
	}
	if (pw_copy(&pw, copies, (uint32_t)(copy - copies), status))
		return false;
	while (FAULT != 4 && copy-- > copies)
		if (status[copy - copies])
			return false;
	return true;
}

static void respond_tx(struct vif *vif, uint16_t id, int16_t status)
{
	netif_tx_response_t *response = RING_GET_RESPONSE(&vif->tx, vif->tx.rsp_prod_pvt++);

	*response = (netif_tx_response_t){ .id = id, .status = status };
}

static void send_packet(struct vif *vif, const struct packet *packet)
{
	bool good = fetch(vif, packet);
	size_t size = packet->slot[0].size;
	uint16_t flags = packet->slot[0].flags;
	struct frame *frame = good ? malloc(sizeof *frame + size) : NULL;

	if (frame) {
		/* Bit 0 is csum_blank here, and data_validated there. */
		frame->flags = (flags & NETTXF_csum_blank ? NETRXF_csum_blank | NETRXF_data_validated : 0) |
			       (flags & NETTXF_data_validated ? NETRXF_data_validated : 0);
		frame->size = size;
		for (size_t at = 0; at < size; at += PW_PAGE_SIZE)
			memcpy(frame->data + at, pw_page(&pw, scratch[at / PW_PAGE_SIZE]),
			       size - at < PW_PAGE_SIZE ? size - at : PW_PAGE_SIZE);
	}
	for (unsigned n = 0; n < packet->count; n++) {
		respond_tx(vif, packet->slot[n].id, frame ? NETIF_RSP_OKAY : NETIF_RSP_ERROR);
		for (unsigned extra = 0; !n && extra < packet->extras; extra++)
			respond_tx(vif, 0, NETIF_RSP_NULL);
	}
	if (frame)
		forward(vif, frame);
	free(frame);
}

static void serve(struct vif *vif)
{
	int more = 0, notify, found = 0;

	do {
		RING_IDX produced;
		struct packet packet;
		if (!vif->connected || vif->broken)
			return;
		produced = vif->tx.sring->req_prod;
		xen_rmb();
		if (RING_REQUEST_PROD_OVERFLOW(&vif->tx, produced)) {
			give_up(vif);                    /* XSA-39 */
			return;
		}
		while ((found = gather(vif, produced, &packet)) > 0)
			send_packet(vif, &packet);
		if (found < 0) {
			give_up(vif);
			return;
		}
		RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&vif->tx, notify);
		if (notify || FAULT == 6)
			pw_notify(&pw, vif->ports[0]);
		if (FAULT == 1)
			return;
		/* What is missing comes behind what has been seen: half a packet is no reason to look again. */
		vif->tx.sring->req_event = produced + 1;
		xen_mb();
		more = vif->tx.sring->req_prod != produced;
	} while (more);
}

/* ---- the bus */

static void publish(const struct vif *vif)
{
	pw_write(&pw, bus_node(vif->bus.home, "feature-rx-copy"), "1");
	pw_write(&pw, bus_node(vif->bus.home, "feature-sg"), "1");
	pw_write(&pw, bus_node(vif->bus.home, "feature-split-event-channels"), "1");
}

static void close_ports(struct vif *vif)
{
	while (vif->port_count)
		pw_close(&pw, vif->ports[--vif->port_count]);
}

/* Bind the event channels: one for each ring, if the frontend has split them. */
static bool bind_ports(struct vif *vif)
{
	bool split = front_says(vif, "event-channel-tx") >= 0;
	const char *names[2] = { split ? "event-channel-tx" : "event-channel", "event-channel-rx" };

	for (unsigned n = 0; n < (split ? 2u : 1u); n++) {
		long long port = front_says(vif, names[n]);
		if (port < 0 || port > UINT32_MAX || pw_bind(&pw, vif->bus.domid, (uint32_t)port, &vif->ports[n])) {
			close_ports(vif);
			return false;
		}
		vif->port_count++;
	}
	return true;
}

static bool attach(struct vif *vif)
{
	long long tx = front_says(vif, "tx-ring-ref"), rx = front_says(vif, "rx-ring-ref");
	uint32_t refs[2] = { (uint32_t)tx, (uint32_t)rx }, good[2], count = 0;
	struct pw_mapped page[2];

	if (front_says(vif, "request-rx-copy") != 1 || tx < 0 || tx > UINT32_MAX || rx < 0 || rx > UINT32_MAX ||
	    pw_map(&pw, vif->bus.domid, 0, refs, 2, page))
		return false;
	for (unsigned n = 0; n < 2; n++)
		if (!page[n].status)
			good[count++] = page[n].handle;
	if (count < 2 || !bind_ports(vif)) {
		pw_unmap(&pw, good, count);
		return false;
	}
	memcpy(vif->handles, good, sizeof good);
	BACK_RING_INIT(&vif->tx, (netif_tx_sring_t *)pw_page(&pw, page[0].page), PW_PAGE_SIZE);
	BACK_RING_INIT(&vif->rx, (netif_rx_sring_t *)pw_page(&pw, page[1].page), PW_PAGE_SIZE);
	vif->scatter = front_says(vif, "feature-sg") == 1;
	vif->wants_checksums = front_says(vif, "feature-no-csum-offload") == 1;
	vif->connected = true;
	vif->broken = false;
	return true;
}

static void detach(struct vif *vif)
{
	while (vif->first) {
		struct frame *frame = vif->first;
		vif->first = frame->next;
		free(frame);
	}
	vif->last = &vif->first;
	vif->waiting = 0;
	if (!vif->connected)
		return;
	vif->connected = false;
	close_ports(vif);
	if (FAULT != 3)
		pw_unmap(&pw, vif->handles, 2);
}

/* Find the interface with this number of the only guest, unless it is known or not (wholly) there. */
static void find(const char *guest, const char *number)
{
	struct vif *vif = NULL;
	char home[128];

	snprintf(home, sizeof home, "backend/vif/%.20s/%.20s", guest, number);
	for (struct vif *one = vifs; one < vifs + MAX_VIFS; one++) {
		if (!strcmp(one->bus.home, home))
			return;
		if (!one->bus.home[0])
			vif = one;
	}
	if (!vif || pw_read(&pw, bus_node(home, "frontend"), vif->bus.other, sizeof vif->bus.other))
		return;                          /* not complete: the watch will say so */
	strcpy(vif->bus.home, home);
	vif->bus.domid = (uint16_t)pw_read_number(&pw, bus_node(home, "frontend-id"));
	vif->last = &vif->first;
	pw_watch(&pw, bus_node(vif->bus.other, "state"), "front");
}

/* Let go of a frontend that closes, or is gone. */
static void let_go(struct vif *vif)
{
	if (FAULT != 7 || bus_state(&pw, vif->bus.other) != XenbusStateUnknown)
		detach(vif);
}

static void forget(struct vif *vif)
{
	let_go(vif);
	pw_unwatch(&pw, bus_node(vif->bus.other, "state"), "front");
	vif->bus.home[0] = 0;
}

/* Find what the toolstack has made: backend/vif/DOMID/NUMBER. */
static void find_all(void)
{
	char guest[32], directory[64], names[256];
	size_t length;

	if (pw_directory(&pw, "backend/vif") || !pw.answer_length)
		return;
	snprintf(guest, sizeof guest, "%.20s", (const char *)pw.answer);
	snprintf(directory, sizeof directory, "backend/vif/%s", guest);
	if (pw_directory(&pw, directory))
		return;
	length = pw.answer_length < sizeof names ? pw.answer_length : 0;
	memcpy(names, pw.answer, length);
	for (size_t at = 0; at < length; at += strlen(names + at) + 1)
		find(guest, names + at);
}

/* Look at both states of an interface, and do what they ask for. */
static void look(struct vif *vif)
{
	int own, next;

	switch (bus_look(&pw, &vif->bus, vif->connected, &own, &next)) {
	case BUS_WAIT:
		return;
	case BUS_PUBLISH:
		detach(vif);
		publish(vif);
		break;
	case BUS_CONNECT:
		if (!attach(vif)) {
			bus_fail(&pw, &vif->bus, "the rings or their event channels cannot be used");
			return;
		}
		break;
	case BUS_CLOSE:
		let_go(vif);
		break;
	case BUS_FORGET:
		forget(vif);
		return;
	}
	if (next != own)
		bus_switch(&pw, &vif->bus, own, next);
	serve(vif);                      /* there may be requests already */
}

int main(int argc, char **argv)
{
	struct pw_news news;
	int error = pw_connect(&pw, argc > 1 ? argv[1] : getenv("PARAVIRT_SOCKET"));

	for (unsigned n = 0; n < MAX_PAGES && !error; n++)
		error = pw_alloc(&pw, &scratch[n]);
	if (error) {
		fprintf(stderr, "no connection: %s\n", strerror(-error));
		return 1;
	}
	pw_watch(&pw, "backend/vif", "devices");
	while (!pw_wait(&pw, PW_FOREVER)) {
		bool nodes = false, events = false;
		while (pw_next(&pw, &news)) {
			nodes |= news.kind == PW_WATCH;
			events |= news.kind == PW_EVENT;
		}
		if (nodes)
			find_all();
		for (struct vif *vif = vifs; vif < vifs + MAX_VIFS; vif++) {
			if (nodes && vif->bus.home[0])
				look(vif);
			if (events) {
				serve(vif);
				flush(vif);
			}
		}
	}
	return 0;                        /* the kit has hung up: the check is over */
}
