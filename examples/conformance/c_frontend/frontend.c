/*
 * A block frontend in C: the disk of a guest whose wishes come as jobs, through Xen's own headers and paravirt_wire.h.
 *
 *     make && paravirt check serve --suite blkif-frontend --socket /tmp/check.sock -- ./frontend
 *
 * Copyright the paravirt authors. SPDX-License-Identifier: MIT
 */
#include <stdbool.h>
#include <stdint.h>

#include "driver.h"
#include <xen/io/blkif.h>

#include "bus.h"
#include "paravirt_wire.h"

#define HOME "device/vbd/51712"
#define SECTOR 512
#define SECTORS_PER_PAGE 8
#define SLOTS 32
#define SEGMENTS BLKIF_MAX_SEGMENTS_PER_REQUEST

/* A job: what the guest wants, cut into requests. */
struct job {
	struct job *next;
	uint32_t number, kind, sectors;
	uint64_t sector;
	uint8_t *data;
	uint32_t sent, answered;         /* sectors that are under way or done; that are done */
	int error;
};

/* A request under way: its id is its number here. */
struct shadow {
	bool busy;
	uint8_t op;
	struct job *job;
	uint32_t begin, sectors, pages, page[SEGMENTS], ref[SEGMENTS];
};

static struct pw pw;
static struct bus bus = { .home = HOME };    /* the other end is empty: there is no device */
static uint32_t port, ring_page, ring_ref;
static blkif_front_ring_t ring;
static struct shadow shadows[SLOTS];
static struct job *jobs;
static uint64_t disk_sectors;
static bool flushes;
static enum { UNUSED, WAITING, CONNECTED, GONE } life;

/* ---- jobs */

static void finish(struct job *job, int error, const void *data, size_t size)
{
	struct job **at = &jobs;

	while (*at != job)
		at = &(*at)->next;
	*at = job->next;
	pw_done(&pw, job->number, error, data, error ? 0 : size);
	free(job->data);
	free(job);
}

static void take(const struct pw_news *news)
{
	struct job *job = calloc(1, sizeof *job), **end = &jobs;

	job->number = news->job;
	job->kind = news->job_kind;
	job->sector = news->sector;
	job->sectors = news->sectors;
	job->data = calloc(1, (size_t)job->sectors * SECTOR + 1);
	memcpy(job->data, news->data, news->length);
	while (*end)
		end = &(*end)->next;
	*end = job;
}

/* ---- requests */

/* Give the pages of a request back, with what they hold if the guest wants that. */
static void release(struct shadow *shadow, bool wanted)
{
	uint32_t sector = shadow->begin, left = shadow->sectors;

	for (uint32_t n = 0; n < shadow->pages; n++) {
		uint32_t count = left < SECTORS_PER_PAGE ? left : SECTORS_PER_PAGE;
		/* Nobody but us may write there any more, or it is not looked at (and never used again). */
		if (pw_end_access(&pw, shadow->ref[n])) {
			if (wanted)
				shadow->job->error = -EIO;
		} else {
			if (wanted && shadow->job->kind == PW_JOB_READ)
				memcpy(shadow->job->data + (size_t)sector * SECTOR, pw_page(&pw, shadow->page[n]),
				       (size_t)count * SECTOR);
			pw_free(&pw, shadow->page[n]);
		}
		sector += count;
		left -= count;
	}
	shadow->busy = false;
}

/* Make a request of the next part of a job; false if there is no room. */
static bool send_part(struct job *job)
{
	uint32_t slot = 0, left = job->sectors - job->sent;
	blkif_request_t *request;

	while (slot < SLOTS && shadows[slot].busy)
		slot++;
	if (slot == SLOTS || RING_FULL(&ring))
		return false;
	struct shadow *shadow = &shadows[slot];
	*shadow = (struct shadow){ .busy = true, .job = job, .begin = job->sent };
	request = RING_GET_REQUEST(&ring, ring.req_prod_pvt);
	memset(request, 0, sizeof *request);
	request->id = slot;
	if (job->kind == PW_JOB_FLUSH) {
		request->operation = shadow->op = BLKIF_OP_FLUSH_DISKCACHE;
	} else {
		bool is_read = job->kind == PW_JOB_READ;
		request->operation = shadow->op = is_read ? BLKIF_OP_READ : BLKIF_OP_WRITE;
		request->sector_number = job->sector + job->sent;
		while (left && shadow->pages < SEGMENTS) {
			uint32_t count = left < SECTORS_PER_PAGE ? left : SECTORS_PER_PAGE, n = shadow->pages;
			if (pw_alloc(&pw, &shadow->page[n]))
				break;
			if (!is_read)
				memcpy(pw_page(&pw, shadow->page[n]), job->data + (size_t)job->sent * SECTOR, count * SECTOR);
			if (pw_grant(&pw, bus.domid, is_read ? 0 : PW_READONLY, shadow->page[n], &shadow->ref[n])) {
				pw_free(&pw, shadow->page[n]);
				break;
			}
			request->seg[n].gref = shadow->ref[n];
			request->seg[n].last_sect = (uint8_t)(count - 1);
			shadow->pages++;
			shadow->sectors += count;
			job->sent += count;
			left -= count;
		}
		if (!shadow->pages) {
			shadow->busy = false;    /* no memory: when something has been answered */
			return false;
		}
		request->nr_segments = (uint8_t)shadow->pages;
	}
	ring.req_prod_pvt++;
	return true;
}

/* Do what can be done of all jobs. */
static void work(void)
{
	bool any = false;
	int notify;

	for (struct job *job = jobs, *next; job; job = next) {
		next = job->next;
		if (job->kind == PW_JOB_NOTHING) {
			finish(job, 0, NULL, 0);
		} else if (life == GONE) {
			finish(job, -EIO, NULL, 0);
		} else if (life == CONNECTED && job->kind == PW_JOB_SIZE) {
			finish(job, 0, &disk_sectors, sizeof disk_sectors);
		} else if (life == CONNECTED && job->kind == PW_JOB_FLUSH) {
			if (!flushes)
				finish(job, 0, NULL, 0);         /* nothing is held back that could be flushed */
			else if (!job->sent && send_part(job)) {
				job->sent = 1;
				any = true;
			}
		} else if (life == CONNECTED) {
			while (job->sent < job->sectors && send_part(job))
				any = true;
		}
	}
	if (!any)
		return;
	RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&ring, notify);
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

static void answer(const blkif_response_t *response)
{
	struct shadow *shadow = &shadows[response->id];
	struct job *job = shadow->job;

	if (response->status != BLKIF_RSP_OKAY)
		job->error = -EIO;
	job->answered += job->kind == PW_JOB_FLUSH ? 1 : shadow->sectors;
	release(shadow, response->status == BLKIF_RSP_OKAY);
	if (job->answered == (job->kind == PW_JOB_FLUSH ? 1 : job->sectors))
		finish(job, job->error, job->data, job->kind == PW_JOB_READ ? (size_t)job->sectors * SECTOR : 0);
}

static void collect(void)
{
	int more;

	do {
		RING_IDX produced = ring.sring->rsp_prod;
		xen_rmb();
		if (produced - ring.rsp_cons > ring.req_prod_pvt - ring.rsp_cons) {
			give_up("more responses than requests");
			return;
		}
		while (ring.rsp_cons != produced) {
			blkif_response_t response;
			RING_COPY_RESPONSE(&ring, ring.rsp_cons, &response);
			if (response.id >= SLOTS || !shadows[response.id].busy ||
			    response.operation != shadows[response.id].op) {
				give_up("a response to nothing");
				return;
			}
			ring.rsp_cons++;
			answer(&response);
		}
		RING_FINAL_CHECK_FOR_RESPONSES(&ring, more);
	} while (more);
}

/* ---- the bus */

static long long theirs(const char *name)
{
	return pw_read_number(&pw, bus_node(bus.other, name));
}

/* Make the ring, and say where it is. */
static void publish(int own, int next)
{
	if (pw_alloc(&pw, &ring_page) || pw_grant(&pw, bus.domid, 0, ring_page, &ring_ref) ||
	    pw_alloc_unbound(&pw, bus.domid, &port))
		return;
	blkif_sring_t *shared = pw_page(&pw, ring_page);
	SHARED_RING_INIT(shared);
	FRONT_RING_INIT(&ring, shared, PW_PAGE_SIZE);
	const struct bus_value nodes[] = {
		{ "ring-ref", ring_ref, NULL }, { "event-channel", port, NULL }, { "protocol", 0, "x86_64-abi" },
		{ NULL, 0, NULL },
	};
	life = WAITING;
	bus_publish(&pw, &bus, nodes, own, next);
}

static void connect_disk(void)
{
	long long sectors = theirs("sectors"), size = theirs("sector-size");

	if (sectors < 0 || size != SECTOR) {
		give_up("no size, or no sectors of 512 bytes");
		return;
	}
	disk_sectors = (uint64_t)sectors;
	flushes = theirs("feature-flush-cache") == 1;
	life = CONNECTED;
	bus_switch(&pw, &bus, XenbusStateInitialised, XenbusStateConnected);
}

/* The backend is closing, or gone: what is under way fails, and everything comes back that it does not map. */
static void close_disk(void)
{
	life = GONE;
	for (uint32_t n = 0; n < SLOTS; n++)
		if (shadows[n].busy)
			release(&shadows[n], false);
	if (port)
		pw_close(&pw, port);
	port = 0;
	if (ring_ref && !pw_end_access(&pw, ring_ref)) {
		pw_free(&pw, ring_page);
		ring_ref = 0;
	}
}

/* Find the disk, if there is one. */
static bool find(void)
{
	if (pw_read(&pw, HOME "/backend", bus.other, sizeof bus.other) || !bus.other[0])
		return false;
	bus.domid = (uint16_t)pw_read_number(&pw, HOME "/backend-id");
	pw_watch(&pw, bus_node(bus.other, "state"), "backend");
	return true;
}

static void forget(void)
{
	close_disk();
	pw_unwatch(&pw, bus_node(bus.other, "state"), "backend");
	bus.other[0] = 0;
	life = UNUSED;
}

/* Look at both states, and do what they ask for. */
static void look(void)
{
	int own, next;

	if (!bus.other[0] && !find())
		return;
	switch (bus_look_front(&pw, &bus, life != UNUSED, XenbusStateInitialised, &own, &next)) {
	case BUS_PUBLISH:
		publish(own, next);
		return;
	case BUS_CONNECT:
		if (life == WAITING)
			connect_disk();
		return;
	case BUS_CLOSE:
		close_disk();
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
	pw_watch(&pw, "device/vbd", "device");
	while (!pw_wait(&pw, PW_FOREVER)) {
		bool nodes = false, responses = false;
		while (pw_next(&pw, &news)) {
			nodes |= news.kind == PW_WATCH;
			responses |= news.kind == PW_EVENT;
			if (news.kind == PW_JOB)
				take(&news);
		}
		if (responses && life == CONNECTED)
			collect();
		if (nodes)
			look();
		work();
	}
	return 0;                        /* the kit has hung up: the check is over */
}
