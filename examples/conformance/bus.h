/*
 * An end of the bus: what it does when it looks at the states of both ends, whatever the path that led there.
 *
 * Copyright the paravirt authors. SPDX-License-Identifier: MIT
 */
#ifndef BUS_H
#define BUS_H

#include <stdbool.h>
#include <xen/io/xenbus.h>

#include "paravirt_wire.h"

struct bus {
	char home[128], other[128];      /* "backend/vbd/1/51712", and the other end's directory */
	uint16_t domid;                  /* of the other end */
};

enum bus_step {
	BUS_WAIT,
	BUS_PUBLISH,                     /* let go of what there was, and say what is offered */
	BUS_CONNECT,
	BUS_CLOSE,                       /* let go of everything */
	BUS_FORGET,                      /* that too; and the device is gone */
};

static inline const char *bus_node(const char *directory, const char *name)
{
	static char path[192];
	snprintf(path, sizeof path, "%.127s/%.60s", directory, name);
	return path;
}

/* Read a state: XenbusStateUnknown if there is no such node, -1 if it is none. */
static inline int bus_state(struct pw *pw, const char *directory)
{
	char text[32];

	if (pw_read(pw, bus_node(directory, "state"), text, sizeof text))
		return XenbusStateUnknown;
	return text[0] >= '1' && text[0] <= '8' && !text[1] ? text[0] - '0' : -1;
}

/*
 * Change one's own state, if it is still what it was: the toolstack writes it too. It may have asked for the device's
 * end in this very moment, which is not to be overwritten; or have removed it, and then it must not come back.
 */
static inline void bus_switch(struct pw *pw, const struct bus *bus, int from, int to)
{
	const char *path = bus_node(bus->home, "state");
	char payload[192];
	int length = snprintf(payload, sizeof payload, "%.160s%c%d", path, 0, to), error;

	do {
		uint32_t transaction = pw_transaction(pw);
		if (!pw_store(pw, PW_XS_READ, transaction, path, strlen(path) + 1) &&
		    atoi((const char *)pw->answer) == from)
			pw_store(pw, PW_XS_WRITE, transaction, payload, (size_t)length);
		error = pw_commit(pw, transaction);
	} while (error == -EAGAIN);
}

/* Give the device up, and say why: that is what a person gets to see. */
static inline void bus_fail(struct pw *pw, const struct bus *bus, const char *why)
{
	char path[192];

	snprintf(path, sizeof path, "error/%.127s/error", bus->home);
	pw_write(pw, path, "%d %s", EINVAL, why);
	bus_switch(pw, bus, bus_state(pw, bus->home), XenbusStateClosing);
}

/* Say what a backend is to do. `own` is the state that one has now, `next` the one to switch to when it has been done. */
static inline enum bus_step bus_look(struct pw *pw, const struct bus *bus, bool connected, int *own, int *next)
{
	int front = bus_state(pw, bus->other);
	bool online = pw_read_number(pw, bus_node(bus->home, "online")) != 0;

	*next = *own = bus_state(pw, bus->home);
	if (*own == XenbusStateUnknown)
		return BUS_FORGET;
	switch (front) {
	case XenbusStateInitialising:
	case XenbusStateInitWait:
		if (*own == XenbusStateClosing || !online) {
			*next = XenbusStateClosed;       /* unplugged, and nobody is there (any more) */
			return BUS_CLOSE;
		}
		*next = XenbusStateInitWait;
		return *own == XenbusStateInitWait && !connected ? BUS_WAIT : BUS_PUBLISH;
	case XenbusStateInitialised:
	case XenbusStateConnected:
		if (*own == XenbusStateInitialising) {
			*next = XenbusStateInitWait;
			return BUS_PUBLISH;
		}
		if (*own != XenbusStateInitWait)
			return BUS_WAIT;
		*next = XenbusStateConnected;
		return BUS_CONNECT;
	case XenbusStateClosing:
		if (*own != XenbusStateClosed)
			*next = XenbusStateClosing;
		return BUS_CLOSE;
	case XenbusStateClosed:
	case XenbusStateUnknown:                 /* its domain is gone */
		*next = XenbusStateClosed;
		return BUS_CLOSE;
	default:
		return BUS_WAIT;                 /* no state that says anything to us */
	}
}

/* A node of a frontend's: a number, or a text. */
struct bus_value { const char *name; uint32_t number; const char *text; };

/* Write nodes and a new state at once: nobody sees one without the other. Nothing, if the state is not what it was. */
static inline void bus_publish(struct pw *pw, const struct bus *bus, const struct bus_value *nodes, int from, int to)
{
	char payload[192];
	bool good;
	int error;

	do {
		uint32_t transaction = pw_transaction(pw);
		const char *path = bus_node(bus->home, "state");
		good = !pw_store(pw, PW_XS_READ, transaction, path, strlen(path) + 1) &&
		       atoi((const char *)pw->answer) == from;
		for (const struct bus_value *node = nodes; good && node->name; node++) {
			int length = snprintf(payload, sizeof payload, "%.100s/%.40s%c", bus->home, node->name, 0);
			length += node->text ? sprintf(payload + length, "%.30s", node->text)
					     : sprintf(payload + length, "%u", node->number);
			pw_store(pw, PW_XS_WRITE, transaction, payload, (size_t)length);
		}
		if (good) {
			int length = snprintf(payload, sizeof payload, "%.127s/state%c%d", bus->home, 0, to);
			pw_store(pw, PW_XS_WRITE, transaction, payload, (size_t)length);
		}
		error = pw_commit(pw, transaction);
	} while (error == -EAGAIN);
}

/*
 * Say what a frontend is to do. `said` is the state in which it is when it has published, `published` whether it has
 * anything that it would have to take back. (In BUS_CLOSE that is what the backend does not map any more.)
 */
static inline enum bus_step bus_look_front(struct pw *pw, const struct bus *bus, bool published, int said, int *own,
					   int *next)
{
	int back = bus_state(pw, bus->other);

	*next = *own = bus_state(pw, bus->home);
	if (*own == XenbusStateUnknown)
		return BUS_FORGET;
	if (*own == XenbusStateInitialising && published)
		return BUS_CLOSE;                /* the directory was made anew: this is another device */
	switch (back) {
	case XenbusStateInitialising:
		if (*own != said && *own != XenbusStateConnected)
			return BUS_WAIT;
		*next = XenbusStateClosing;      /* it has begun anew, and knows nothing of us */
		return BUS_CLOSE;
	case XenbusStateInitWait:
	case XenbusStateInitialised:
		if (*own == XenbusStateInitialising) {
			*next = said;
			return BUS_PUBLISH;
		}
		return *own == XenbusStateClosed ? BUS_CLOSE : BUS_WAIT;
	case XenbusStateConnected:
		if (*own != said)
			return BUS_WAIT;
		*next = XenbusStateConnected;
		return BUS_CONNECT;
	case XenbusStateClosed:
	case XenbusStateUnknown:                 /* its domain is gone; or it has yet to come */
		if (*own == XenbusStateInitialising)
			return BUS_WAIT;
		/* fall through */
	case XenbusStateClosing:
		*next = XenbusStateClosed;
		return BUS_CLOSE;
	default:
		return BUS_WAIT;                 /* no state that says anything to us */
	}
}

#endif
