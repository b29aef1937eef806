/*
 * A block backend in C: one disk, an image file, served through Xen's own headers and paravirt_wire.h.
 *
 *     make && paravirt check serve --suite blkif-backend --socket /tmp/check.sock -- ./backend
 *
 * `make FAULT=1` and so on builds it with a fault, which the kit finds (see README.md).
 *
 * Copyright the paravirt authors. SPDX-License-Identifier: MIT
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>

#include "driver.h"
#include <xen/io/blkif.h>

#include "bus.h"
#include "paravirt_wire.h"

#define SECTOR 512
#define SECTORS_PER_PAGE 8
#define MAX_INDIRECT 64

struct disk {
	struct bus bus;
	int image;
	uint64_t sectors;
	bool connected, broken;
	uint32_t port, ring_handle;
	blkif_back_ring_t ring;
};

static struct pw pw;
static struct disk disk;

/* ---- nodes */

static long long front_says(const char *name)
{
	return pw_read_number(&pw, bus_node(disk.bus.other, name));
}

static void say(const char *name, unsigned long long value)
{
	pw_write(&pw, bus_node(disk.bus.home, name), "%llu", value);
}

/* ---- requests */

struct segments {
	uint32_t count;
	struct blkif_request_segment seg[MAX_INDIRECT];
};

/* Move the data of a request between the image and the frontend's pages. */
static int transfer(bool is_read, uint64_t sector, const struct segments *all)
{
	uint32_t refs[MAX_INDIRECT], handles[MAX_INDIRECT], mapped = 0;
	struct pw_mapped page[MAX_INDIRECT];
	uint64_t total = 0;
	int status = BLKIF_RSP_OKAY;

	for (uint32_t n = 0; n < all->count; n++) {
		const struct blkif_request_segment *seg = &all->seg[n];
		if (seg->first_sect > seg->last_sect || seg->last_sect >= SECTORS_PER_PAGE)
			return BLKIF_RSP_ERROR;
		refs[n] = seg->gref;
		total += seg->last_sect - seg->first_sect + 1u;
	}
	if (!all->count || sector > disk.sectors || total > disk.sectors - sector)
		return BLKIF_RSP_ERROR;
	if (pw_map(&pw, disk.bus.domid, is_read ? 0 : PW_READONLY, refs, all->count, page))
		return BLKIF_RSP_ERROR;
	for (uint32_t n = 0; n < all->count; n++) {
		if (page[n].status)
			status = BLKIF_RSP_ERROR;
		else
			handles[mapped++] = page[n].handle;
	}
	if (FAULT == 4 && status)
		return status;
	if (FAULT == 5)
		pw_unmap(&pw, handles, mapped);
	for (uint32_t n = 0; n < all->count && !status; n++) {
		const struct blkif_request_segment *seg = &all->seg[n];
		size_t size = (seg->last_sect - seg->first_sect + 1u) * SECTOR;
		uint8_t *data = (uint8_t *)pw_page(&pw, page[n].page) + seg->first_sect * SECTOR;
		off_t at = (off_t)(sector * SECTOR);
		ssize_t done = is_read ? pread(disk.image, data, size, at) : pwrite(disk.image, data, size, at);
		if (done != (ssize_t)size)
			status = BLKIF_RSP_ERROR;
		sector += size / SECTOR;
	}
	if (FAULT != 5 && mapped)
		pw_unmap(&pw, handles, mapped);
	return status;
}

/* Find the segments of an indirect request in the pages that it names; false if there is something wrong. */
static bool gather(const blkif_request_indirect_t *request, struct segments *all)
{
	struct pw_mapped page;
	uint32_t ref = request->indirect_grefs[0];

	/* (64 segments are in one page.) */
	if (request->nr_segments > MAX_INDIRECT || pw_map(&pw, disk.bus.domid, PW_READONLY, &ref, 1, &page) || page.status)
		return false;
	all->count = request->nr_segments;
	memcpy(all->seg, pw_page(&pw, page.page), all->count * sizeof all->seg[0]);
	pw_unmap(&pw, &page.handle, 1);
	return true;
}

static int serve_one(const blkif_request_t *request)
{
	struct segments all = { 0 };
	uint8_t op = request->operation;

	switch (op) {
	case BLKIF_OP_FLUSH_DISKCACHE:
		return fdatasync(disk.image) ? BLKIF_RSP_ERROR : BLKIF_RSP_OKAY;
	case BLKIF_OP_INDIRECT:
		op = ((const blkif_request_indirect_t *)request)->indirect_op;
		if ((op != BLKIF_OP_READ && op != BLKIF_OP_WRITE) ||
		    !gather((const blkif_request_indirect_t *)request, &all))
			return BLKIF_RSP_ERROR;
		return transfer(op == BLKIF_OP_READ, ((const blkif_request_indirect_t *)request)->sector_number, &all);
	case BLKIF_OP_READ:
	case BLKIF_OP_WRITE:
		if (request->nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST)
			return BLKIF_RSP_ERROR;
		all.count = request->nr_segments;
		if (FAULT == 2) {
			uint64_t now;
			pw_time(&pw, &now);      /* something takes a moment... */
			all.count = request->nr_segments;
		}
		memcpy(all.seg, request->seg, all.count * sizeof all.seg[0]);
		return transfer(op == BLKIF_OP_READ, request->sector_number, &all);
	default:
		return BLKIF_RSP_EOPNOTSUPP;
	}
}

static void respond(uint64_t id, uint8_t op, int status)
{
	blkif_response_t response;

	/* XSA-216: the gaps, too, are the frontend's to read. */
	memset(&response, 0, sizeof response);
	response.id = id;
	response.operation = op;
	response.status = (int16_t)status;
	memcpy(RING_GET_RESPONSE(&disk.ring, disk.ring.rsp_prod_pvt), &response, sizeof response);
	disk.ring.rsp_prod_pvt++;
}

static void serve(void)
{
	int more = 0, notify;

	if (!disk.connected || disk.broken)
		return;
	do {
		RING_IDX consumed = disk.ring.req_cons, produced = disk.ring.sring->req_prod;
		xen_rmb();
		if (RING_REQUEST_PROD_OVERFLOW(&disk.ring, produced)) {
			/* XSA-39: this ring is not to be believed any more. */
			disk.broken = true;
			bus_fail(&pw, &disk.bus, "more requests than the ring has slots");
			return;
		}
		while (consumed != produced && !RING_REQUEST_CONS_OVERFLOW(&disk.ring, consumed)) {
			blkif_request_t request;
			const blkif_request_t *believed = &request;
			/* Once, and then never again from shared memory. */
			RING_COPY_REQUEST(&disk.ring, consumed, &request);
			if (FAULT == 2)
				believed = RING_GET_REQUEST(&disk.ring, consumed);
			disk.ring.req_cons = ++consumed;
			respond(request.id, request.operation, serve_one(believed));
		}
		RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&disk.ring, notify);
		if (notify || FAULT == 6)
			pw_notify(&pw, disk.port);
		if (FAULT != 1)
			RING_FINAL_CHECK_FOR_REQUESTS(&disk.ring, more);
	} while (more);
}

/* ---- the bus */

static void publish(void)
{
	say("feature-flush-cache", 1);
	say("feature-max-indirect-segments", MAX_INDIRECT);
}

static bool attach(void)
{
	char protocol[32];
	struct pw_mapped page;
	long long ref = front_says("ring-ref"), port = front_says("event-channel");
	uint32_t reference = (uint32_t)ref;

	if (!pw_read(&pw, bus_node(disk.bus.other, "protocol"), protocol, sizeof protocol) && strcmp(protocol, "x86_64-abi"))
		return false;
	if (ref < 0 || ref > UINT32_MAX || port < 0 || port > UINT32_MAX)
		return false;
	if (pw_map(&pw, disk.bus.domid, 0, &reference, 1, &page) || page.status)
		return false;
	if (pw_bind(&pw, disk.bus.domid, (uint32_t)port, &disk.port)) {
		pw_unmap(&pw, &page.handle, 1);
		return false;
	}
	disk.ring_handle = page.handle;
	BACK_RING_INIT(&disk.ring, (blkif_sring_t *)pw_page(&pw, page.page), PW_PAGE_SIZE);
	disk.connected = true;
	disk.broken = false;
	return true;
}

static void detach(void)
{
	if (!disk.connected)
		return;
	disk.connected = false;
	pw_close(&pw, disk.port);
	if (FAULT != 3)
		pw_unmap(&pw, &disk.ring_handle, 1);
}

static bool connect_disk(void)
{
	if (!attach()) {
		bus_fail(&pw, &disk.bus, "the ring, its event channel or its layout cannot be used");
		return false;
	}
	say("sectors", disk.sectors);
	say("sector-size", SECTOR);
	say("physical-sector-size", SECTOR);
	say("info", 0);
	return true;
}

/* Find the disk that the toolstack has made: backend/vbd/DOMID/ID. */
static bool find(void)
{
	char image[512], directory[64], home[128];

	if (pw_directory(&pw, "backend/vbd") || !pw.answer_length)
		return false;
	snprintf(directory, sizeof directory, "backend/vbd/%.20s", (const char *)pw.answer);
	if (pw_directory(&pw, directory) || !pw.answer_length)
		return false;
	snprintf(home, sizeof home, "%s/%.20s", directory, (const char *)pw.answer);
	if (pw_read(&pw, bus_node(home, "frontend"), disk.bus.other, sizeof disk.bus.other) ||
	    pw_read(&pw, bus_node(home, "params"), image, sizeof image))
		return false;                    /* not complete: the watch will say so */
	disk.image = open(image, O_RDWR);
	if (disk.image < 0)
		return false;
	strcpy(disk.bus.home, home);
	disk.bus.domid = (uint16_t)pw_read_number(&pw, bus_node(home, "frontend-id"));
	disk.sectors = (uint64_t)lseek(disk.image, 0, SEEK_END) / SECTOR;
	pw_watch(&pw, bus_node(disk.bus.other, "state"), "front");
	return true;
}

/* Let go of a frontend that closes, or is gone. */
static void let_go(void)
{
	if (FAULT != 7 || bus_state(&pw, disk.bus.other) != XenbusStateUnknown)
		detach();
}

static void forget(void)
{
	let_go();
	pw_unwatch(&pw, bus_node(disk.bus.other, "state"), "front");
	close(disk.image);
	disk.bus.home[0] = 0;
}

/* Look at both states, and do what they ask for. */
static void look(void)
{
	int own, next;

	if (!disk.bus.home[0] && !find())
		return;
	switch (bus_look(&pw, &disk.bus, disk.connected, &own, &next)) {
	case BUS_WAIT:
		return;
	case BUS_PUBLISH:
		detach();
		publish();
		break;
	case BUS_CONNECT:
		if (!connect_disk())
			return;
		break;
	case BUS_CLOSE:
		let_go();
		break;
	case BUS_FORGET:
		forget();
		return;
	}
	if (next != own)
		bus_switch(&pw, &disk.bus, own, next);
	serve();                         /* there may be requests already */
}

int main(int argc, char **argv)
{
	struct pw_news news;
	int error = pw_connect(&pw, argc > 1 ? argv[1] : getenv("PARAVIRT_SOCKET"));

	if (error) {
		fprintf(stderr, "no connection: %s\n", strerror(-error));
		return 1;
	}
	pw_watch(&pw, "backend/vbd", "devices");
	while (!pw_wait(&pw, PW_FOREVER)) {
		bool nodes = false, requests = false;
		while (pw_next(&pw, &news)) {
			nodes |= news.kind == PW_WATCH;
			requests |= news.kind == PW_EVENT;
		}
		if (requests)
			serve();
		if (nodes)
			look();
	}
	return 0;                        /* the kit has hung up: the check is over */
}
