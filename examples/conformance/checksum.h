/*
 * The checksum of a TCP or UDP packet that a guest has left blank.
 *
 * Copyright the paravirt authors. SPDX-License-Identifier: MIT
 */
#ifndef CHECKSUM_H
#define CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

enum { ETHERNET = 14, IPV4 = 0x0800, IPV6 = 0x86dd, TCP = 6, UDP = 17 };

static inline uint32_t be16(const uint8_t *at)
{
	return (uint32_t)at[0] << 8 | at[1];
}

static inline uint64_t sum16(const uint8_t *data, size_t size)
{
	uint64_t sum = 0;

	for (; size > 1; size -= 2, data += 2)
		sum += be16(data);
	return size ? sum + ((uint64_t)*data << 8) : sum;
}

/* Fill in the checksum of a frame, if it is a whole packet that has one: what the headers say is only believed so far. */
static inline void fill_checksum(uint8_t *frame, size_t size)
{
	size_t transport = ETHERNET + 40, end, field;
	uint8_t protocol;
	uint64_t sum;

	if (size >= ETHERNET + 20 && be16(frame + 12) == IPV4) {
		transport = ETHERNET + (size_t)(frame[ETHERNET] & 15) * 4;
		end = ETHERNET + be16(frame + ETHERNET + 2);
		protocol = frame[ETHERNET + 9];
		sum = sum16(frame + ETHERNET + 12, 8);
	} else if (size >= ETHERNET + 40 && be16(frame + 12) == IPV6) {
		end = transport + be16(frame + ETHERNET + 4);
		protocol = frame[ETHERNET + 6];
		sum = sum16(frame + ETHERNET + 8, 32);
	} else {
		return;
	}
	field = transport + (protocol == TCP ? 16 : 6);
	if ((protocol != TCP && protocol != UDP) || transport < ETHERNET + 20 || field + 2 > end || end > size)
		return;
	frame[field] = frame[field + 1] = 0;
	sum += protocol + (end - transport) + sum16(frame + transport, end - transport);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	if (!sum && protocol == UDP)
		sum = 0xffff;                    /* 0 says that there is none */
	frame[field] = (uint8_t)(sum >> 8);
	frame[field + 1] = (uint8_t)sum;
}

#endif
