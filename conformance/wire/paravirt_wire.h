/*
 * The wire between a driver in any language and paravirt's conformance kit (docs/conformance-wire.md).
 *
 * One header, no library: put it beside your source. Everything is `static inline`, blocks until the host has
 * answered, and returns what the answer's status says: 0, or a number of <errno.h>, negative (of grants: a GNTST_ one).
 *
 * A program is a loop around pw_wait():
 *
 *     struct pw pw;
 *     if (pw_connect(&pw, getenv("PARAVIRT_SOCKET"))) return 1;
 *     pw_watch(&pw, "backend/vbd", "devices");
 *     for (;;) {
 *             struct pw_news news;
 *             if (pw_wait(&pw, PW_FOREVER)) return 0;      // the check is over
 *             while (pw_next(&pw, &news)) ...
 *     }
 *
 * Copyright the paravirt authors. SPDX-License-Identifier: MIT
 */
#ifndef PARAVIRT_WIRE_H
#define PARAVIRT_WIRE_H

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PW_MAGIC "PVWIRE\0"
#define PW_VERSION 1
#define PW_PAGE_SIZE 4096u
#define PW_MAX_PAYLOAD 262144u
#define PW_FOREVER UINT64_MAX

enum pw_type {
	PW_HELLO, PW_WAIT, PW_STORE, PW_MAP, PW_UNMAP, PW_COPY, PW_ALLOC, PW_FREE, PW_GRANT, PW_END_ACCESS,
	PW_ALLOC_UNBOUND, PW_BIND_INTERDOMAIN, PW_CLOSE, PW_SEND, PW_TIME, PW_LOG, PW_DONE, PW_FRAME,
};

enum pw_news_kind { PW_EVENT = 1, PW_WATCH = 2, PW_JOB = 3 };
enum pw_job_kind { PW_JOB_READ = 1, PW_JOB_WRITE = 2, PW_JOB_FLUSH = 3, PW_JOB_SIZE = 4,
		   PW_JOB_NOTHING = 5, PW_JOB_SEND = 6, PW_JOB_LISTEN = 7 };
enum { PW_BACKEND = 1, PW_FRONTEND = 2 };
enum { PW_READONLY = 1 };                                 /* of PW_MAP and PW_GRANT */
enum { PW_SOURCE_GREF = 1, PW_DEST_GREF = 2 };            /* of PW_COPY */

/* Requests to xenstore: the numbers of xen/io/xs_wire.h. */
enum {
	PW_XS_DIRECTORY = 1, PW_XS_READ = 2, PW_XS_GET_PERMS = 3, PW_XS_WATCH = 4, PW_XS_UNWATCH = 5,
	PW_XS_TRANSACTION_START = 6, PW_XS_TRANSACTION_END = 7, PW_XS_GET_DOMAIN_PATH = 10, PW_XS_WRITE = 11,
	PW_XS_MKDIR = 12, PW_XS_RM = 13, PW_XS_SET_PERMS = 14,
};

struct pw_header { uint32_t type, serial, length; int32_t status; };
struct pw_hello { char magic[8]; uint32_t version, pages, role; char suite[32]; } __attribute__((packed));
struct pw_mapped { int32_t status; uint32_t handle, page; };
struct pw_copy {
	uint32_t source, dest;                            /* a grant reference, or a page of one's own */
	uint16_t source_domid, dest_domid, source_offset, dest_offset, length, flags;
	uint32_t zero;
};

/* Of a frame that is to be sent, as in struct virtio_net_hdr: a checksum that is blank, a packet that is to be cut. */
struct pw_send { uint16_t csum_start, csum_offset, gso_size, gso_type; };

struct pw_news {
	enum pw_news_kind kind;
	uint32_t port;                                    /* PW_EVENT */
	const char *path, *token;                         /* PW_WATCH */
	uint32_t job, job_kind, sectors;                  /* PW_JOB */
	uint64_t sector;
	struct pw_send send;                              /* PW_JOB_SEND; the frame is the data */
	const uint8_t *data;
	uint32_t length;
};

struct pw {
	int fd;
	uint8_t *memory;                                  /* the window; its pages come and go */
	struct pw_hello hello;
	uint32_t serial;
	uint8_t answer[PW_MAX_PAYLOAD + 1];               /* of the last question, and a NUL */
	uint8_t news[PW_MAX_PAYLOAD + 1];
	uint32_t answer_length, news_length, news_at;
};

static inline int pw_read_all(int fd, void *buffer, size_t size)
{
	for (uint8_t *at = buffer; size;) {
		ssize_t got = read(fd, at, size);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got ? -errno : -EPIPE;
		at += got;
		size -= (size_t)got;
	}
	return 0;
}

static inline int pw_write_all(int fd, const void *buffer, size_t size)
{
	for (const uint8_t *at = buffer; size;) {
		ssize_t put = send(fd, at, size, MSG_NOSIGNAL);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return -errno;
		at += put;
		size -= (size_t)put;
	}
	return 0;
}

/* Connect to the kit, and map the window. */
static inline int pw_connect(struct pw *pw, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct pw_header header;
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec part = { &header, sizeof header };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control,
	};
	int memory;

	pw->serial = pw->news_length = pw->news_at = 0;
	if (!path || strlen(path) >= sizeof address.sun_path)
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	pw->fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (pw->fd < 0 || connect(pw->fd, (struct sockaddr *)&address, sizeof address))
		return -errno;
	/* The descriptor of the memory comes with the first byte. */
	if (recvmsg(pw->fd, &message, MSG_WAITALL) != (ssize_t)sizeof header || header.type != PW_HELLO ||
	    header.length != sizeof pw->hello)
		return -EPROTO;
	struct cmsghdr *with = CMSG_FIRSTHDR(&message);
	if (!with || with->cmsg_type != SCM_RIGHTS)
		return -EPROTO;
	memcpy(&memory, CMSG_DATA(with), sizeof memory);
	if (pw_read_all(pw->fd, &pw->hello, sizeof pw->hello) || memcmp(pw->hello.magic, PW_MAGIC, 8) ||
	    pw->hello.version != PW_VERSION)
		return -EPROTO;
	pw->memory = mmap(NULL, (size_t)pw->hello.pages * PW_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	close(memory);
	return pw->memory == MAP_FAILED ? -errno : 0;
}

static inline void pw_disconnect(struct pw *pw)
{
	munmap(pw->memory, (size_t)pw->hello.pages * PW_PAGE_SIZE);
	close(pw->fd);
}

static inline void *pw_page(const struct pw *pw, uint32_t page)
{
	return pw->memory + (size_t)page * PW_PAGE_SIZE;
}

/* Ask, in two parts if need be; the answer is in pw->answer. A host that has hung up is -EPIPE or the like. */
static inline int pw_ask2(struct pw *pw, enum pw_type type, const void *one, size_t size, const void *two, size_t more)
{
	struct pw_header header = { (uint32_t)type, ++pw->serial, (uint32_t)(size + more), 0 };
	int error = size + more > PW_MAX_PAYLOAD ? -E2BIG : pw_write_all(pw->fd, &header, sizeof header);

	error = error ? error : pw_write_all(pw->fd, one, size);
	error = error ? error : pw_write_all(pw->fd, two, more);
	error = error ? error : pw_read_all(pw->fd, &header, sizeof header);
	if (error)
		return error;
	if (header.serial != pw->serial || header.length > PW_MAX_PAYLOAD)
		return -EPROTO;
	pw->answer_length = header.length;
	pw->answer[header.length] = 0;
	error = pw_read_all(pw->fd, pw->answer, header.length);
	return error ? error : header.status;
}

static inline int pw_ask(struct pw *pw, enum pw_type type, const void *payload, size_t size)
{
	return pw_ask2(pw, type, payload, size, NULL, 0);
}

static inline int pw_ask_number(struct pw *pw, enum pw_type type, uint32_t number)
{
	return pw_ask(pw, type, &number, sizeof number);
}

/* ---- what happens */

/* Wait for news, at most so many nanoseconds of the host's time; then pw_next() gives them one by one. */
static inline int pw_wait(struct pw *pw, uint64_t ns)
{
	int error = pw_ask(pw, PW_WAIT, &ns, sizeof ns);

	pw->news_at = 0;
	pw->news_length = error ? 0 : pw->answer_length;
	memcpy(pw->news, pw->answer, pw->news_length);
	return error;
}

static inline int pw_next(struct pw *pw, struct pw_news *news)
{
	uint32_t head[2];
	const uint8_t *data = pw->news + pw->news_at + sizeof head;

	if (pw->news_at + sizeof head > pw->news_length)
		return 0;
	memcpy(head, pw->news + pw->news_at, sizeof head);
	pw->news_at += (uint32_t)sizeof head + head[1];
	memset(news, 0, sizeof *news);
	news->kind = (enum pw_news_kind)head[0];
	if (news->kind == PW_EVENT) {
		memcpy(&news->port, data, 4);
	} else if (news->kind == PW_WATCH) {
		news->path = (const char *)data;
		news->token = news->path + strlen(news->path) + 1;
	} else if (news->kind == PW_JOB) {
		memcpy(&news->job, data, 4);
		memcpy(&news->job_kind, data + 4, 4);
		memcpy(&news->sector, data + 8, 8);
		memcpy(&news->sectors, data + 16, 4);
		news->data = data + 24;
		news->length = head[1] - 24;
		if (news->job_kind == PW_JOB_SEND) {
			memcpy(&news->send, news->data, sizeof news->send);
			news->data += sizeof news->send;
			news->length -= (uint32_t)sizeof news->send;
		}
	}
	return 1;
}

/* ---- xenstore. Paths are absolute, or begin at one's own /local/domain/N. */

static inline int pw_store(struct pw *pw, uint32_t kind, uint32_t transaction, const void *payload, size_t size)
{
	uint32_t head[2] = { kind, transaction };
	return pw_ask2(pw, PW_STORE, head, sizeof head, payload, size);
}

/* Read a node as text: 0, and `value` is it; or an error, and `value` is empty. */
static inline int pw_read(struct pw *pw, const char *path, char *value, size_t size)
{
	int error = pw_store(pw, PW_XS_READ, 0, path, strlen(path) + 1);
	size_t length = error || pw->answer_length >= size ? 0 : pw->answer_length;

	memcpy(value, pw->answer, length);
	value[length] = 0;
	return error;
}

/* Read a node that is a number: -1 if it is missing, or anything else than digits. */
static inline long long pw_read_number(struct pw *pw, const char *path)
{
	char text[32], *end;
	long long number = pw_read(pw, path, text, sizeof text) ? -1 : strtoll(text, &end, 10);
	return text[0] >= '0' && text[0] <= '9' && !*end ? number : -1;
}

/* Write a node; the value is made as by printf. */
__attribute__((format(printf, 3, 4)))
static inline int pw_write(struct pw *pw, const char *path, const char *format, ...)
{
	char payload[4096];
	size_t at = strlen(path) + 1;
	va_list arguments;

	if (at >= sizeof payload)
		return -ENAMETOOLONG;
	memcpy(payload, path, at);
	va_start(arguments, format);
	int length = vsnprintf(payload + at, sizeof payload - at, format, arguments);
	va_end(arguments);
	if (length < 0 || at + (size_t)length >= sizeof payload)
		return -E2BIG;
	return pw_store(pw, PW_XS_WRITE, 0, payload, at + (size_t)length);
}

/* Begin a transaction: its number, or 0 if there is none. */
static inline uint32_t pw_transaction(struct pw *pw)
{
	return pw_store(pw, PW_XS_TRANSACTION_START, 0, "", 1) ? 0 : (uint32_t)strtoul((char *)pw->answer, NULL, 10);
}

/* End it: -EAGAIN if somebody was faster, and all is to be done again. */
static inline int pw_commit(struct pw *pw, uint32_t transaction)
{
	return pw_store(pw, PW_XS_TRANSACTION_END, transaction, "T", 2);
}

/* List the children of a node: names with a NUL behind each, in pw->answer. */
static inline int pw_directory(struct pw *pw, const char *path)
{
	return pw_store(pw, PW_XS_DIRECTORY, 0, path, strlen(path) + 1);
}

static inline int pw_watch_(struct pw *pw, uint32_t kind, const char *path, const char *token)
{
	char payload[4096];
	int length = snprintf(payload, sizeof payload, "%s%c%s", path, 0, token);

	if (length < 0 || (size_t)length >= sizeof payload)
		return -ENAMETOOLONG;
	return pw_store(pw, kind, 0, payload, (size_t)length + 1);
}

static inline int pw_watch(struct pw *pw, const char *path, const char *token)
{
	return pw_watch_(pw, PW_XS_WATCH, path, token);
}

static inline int pw_unwatch(struct pw *pw, const char *path, const char *token)
{
	return pw_watch_(pw, PW_XS_UNWATCH, path, token);
}

/* ---- grants: other domains' pages, and one's own */

/* Map references of a domain; `mapped` has a status (0, or GNTST_), a handle and a page for each. */
static inline int pw_map(struct pw *pw, uint16_t domid, uint16_t flags, const uint32_t *refs, uint32_t count,
			 struct pw_mapped *mapped)
{
	struct { uint16_t domid, flags; uint32_t count; } head = { domid, flags, count };
	int error = pw_ask2(pw, PW_MAP, &head, sizeof head, refs, count * sizeof *refs);

	if (!error)
		memcpy(mapped, pw->answer, count * sizeof *mapped);
	return error;
}

static inline int pw_unmap(struct pw *pw, const uint32_t *handles, uint32_t count)
{
	return pw_ask(pw, PW_UNMAP, handles, count * sizeof *handles);
}

/* Let Xen copy; `statuses` (which may be NULL) has one for each. */
static inline int pw_copy(struct pw *pw, const struct pw_copy *copies, uint32_t count, int32_t *statuses)
{
	int error = pw_ask(pw, PW_COPY, copies, count * sizeof *copies);

	if (!error && statuses)
		memcpy(statuses, pw->answer, count * sizeof *statuses);
	return error;
}

static inline int pw_answered_number(struct pw *pw, int error, uint32_t *number)
{
	if (!error)
		memcpy(number, pw->answer, sizeof *number);
	return error;
}

/* A page of one's own, full of zeros. */
static inline int pw_alloc(struct pw *pw, uint32_t *page)
{
	return pw_answered_number(pw, pw_ask_number(pw, PW_ALLOC, 1), page);
}

static inline int pw_free(struct pw *pw, uint32_t page)
{
	return pw_ask_number(pw, PW_FREE, page);
}

static inline int pw_grant(struct pw *pw, uint16_t domid, uint16_t flags, uint32_t page, uint32_t *ref)
{
	struct { uint16_t domid, flags; uint32_t page; } payload = { domid, flags, page };
	return pw_answered_number(pw, pw_ask(pw, PW_GRANT, &payload, sizeof payload), ref);
}

/* Take a grant back: -EBUSY while somebody has it mapped. */
static inline int pw_end_access(struct pw *pw, uint32_t ref)
{
	return pw_ask_number(pw, PW_END_ACCESS, ref);
}

/* ---- event channels */

static inline int pw_alloc_unbound(struct pw *pw, uint16_t domid, uint32_t *port)
{
	return pw_answered_number(pw, pw_ask_number(pw, PW_ALLOC_UNBOUND, domid), port);
}

static inline int pw_bind(struct pw *pw, uint16_t domid, uint32_t remote, uint32_t *port)
{
	uint32_t payload[2] = { domid, remote };
	return pw_answered_number(pw, pw_ask(pw, PW_BIND_INTERDOMAIN, payload, sizeof payload), port);
}

static inline int pw_notify(struct pw *pw, uint32_t port)
{
	return pw_ask_number(pw, PW_SEND, port);
}

static inline int pw_close(struct pw *pw, uint32_t port)
{
	return pw_ask_number(pw, PW_CLOSE, port);
}

/* ---- the rest */

static inline int pw_time(struct pw *pw, uint64_t *ns)
{
	int error = pw_ask(pw, PW_TIME, NULL, 0);

	if (!error)
		memcpy(ns, pw->answer, sizeof *ns);
	return error;
}

/* A line on the domain's console. */
static inline int pw_log(struct pw *pw, const char *text)
{
	return pw_ask(pw, PW_LOG, text, strlen(text));
}

/* Say what came of a job (frontends). */
static inline int pw_done(struct pw *pw, uint32_t job, int32_t status, const void *data, size_t size)
{
	struct { uint32_t job; int32_t status; } head = { job, status };
	return pw_ask2(pw, PW_DONE, &head, sizeof head, data, size);
}

/* Say that the guest has received a frame (network frontends). */
static inline int pw_frame(struct pw *pw, const void *data, size_t size)
{
	return pw_ask(pw, PW_FRAME, data, size);
}

#endif
