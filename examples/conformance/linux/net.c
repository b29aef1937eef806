/*
 * What runs in a Linux guest whose network frontend is judged: sends frames on eth0 as the kit types them on the
 * console, and tells of those that come.
 *
 *     kit     paravirt: NUMBER send CSUM-START CSUM-OFFSET GSO-SIZE GSO-TYPE HEX | listen | nothing
 *     guest   paravirt: ready
 *     guest   paravirt: NUMBER ok | paravirt: NUMBER error
 *     guest   paravirt: frame BASE64
 *
 * CSUM-START is not 0 if the frame's checksum is blank; GSO-TYPE is that of struct virtio_net_hdr. Frames are told of as
 * they would be on a wire: with their checksum. Statically linked, for a ramdisk:
 *
 *     gcc -static -O2 -o net net.c
 *
 * Copyright the paravirt authors. SPDX-License-Identifier: MIT
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <termios.h>
#include <unistd.h>

#define NAME "eth0"
#define LARGEST 65535
#define LARGE_MTU (LARGEST - 18)
#define ROUNDS 100                       /* of 10 ms, that an interface is waited for before anything is asked */

static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
static int control, wire = -1;
static bool listening;

/* Bring the interface up as soon as it is there; whether it is. */
static bool bring_up(void)
{
	struct ifreq request = { .ifr_name = NAME };
	struct sockaddr_ll place = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	int on = 1;

	if (wire >= 0)
		return true;
	if (ioctl(control, SIOCGIFINDEX, &request))
		return false;
	place.sll_ifindex = request.ifr_ifindex;
	/* (Where the backend takes no scattered frames this is refused, and 1500 remains.) */
	request.ifr_mtu = LARGE_MTU;
	ioctl(control, SIOCSIFMTU, &request);
	if (ioctl(control, SIOCGIFFLAGS, &request))
		return false;
	request.ifr_flags |= IFF_UP;
	if (ioctl(control, SIOCSIFFLAGS, &request) || ioctl(control, SIOCGIFFLAGS, &request) ||
	    !(request.ifr_flags & IFF_RUNNING))
		return false;
	wire = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
	setsockopt(wire, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on);
	if (bind(wire, (struct sockaddr *)&place, sizeof place)) {
		close(wire);
		wire = -1;
	}
	return wire >= 0;
}

static bool send_frame(const char *words)
{
	static uint8_t frame[LARGEST + 1];
	unsigned start, at, gso_size, gso_type, byte;
	struct virtio_net_hdr header = { 0 };
	struct iovec parts[2] = { { &header, sizeof header }, { frame, 0 } };
	int skipped;

	if (sscanf(words, "%u %u %u %u %n", &start, &at, &gso_size, &gso_type, &skipped) != 4)
		return false;
	for (words += skipped; parts[1].iov_len < LARGEST && sscanf(words, "%2x", &byte) == 1; words += 2)
		frame[parts[1].iov_len++] = (uint8_t)byte;
	if (start) {
		header.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		header.csum_start = (uint16_t)start;
		header.csum_offset = (uint16_t)at;
	}
	if (gso_size) {
		header.gso_type = (uint8_t)gso_type;
		header.gso_size = (uint16_t)gso_size;
		header.hdr_len = (uint16_t)(start + (frame[start + 12] >> 4) * 4);
	}
	while (!bring_up())
		usleep(1000);
	return writev(wire, parts, 2) == (ssize_t)(sizeof header + parts[1].iov_len);
}

/* Complete a checksum, as whoever puts the frame on a wire would. */
static void complete(uint8_t *frame, size_t size, const struct virtio_net_hdr *header)
{
	uint32_t sum = 0;
	size_t at = (size_t)header->csum_start + header->csum_offset;

	if (!(header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) || at + 2 > size)
		return;
	for (size_t n = header->csum_start; n < size; n++)
		sum += (n - header->csum_start) % 2 ? frame[n] : (uint32_t)frame[n] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	frame[at] = (uint8_t)(~sum >> 8);
	frame[at + 1] = (uint8_t)~sum;
}

static void hear(void)
{
	static uint8_t frame[LARGEST + 1];
	static char line[64 + (LARGEST + 3) / 3 * 4];
	struct virtio_net_hdr header;
	struct iovec parts[2] = { { &header, sizeof header }, { frame, sizeof frame } };
	struct sockaddr_ll from;
	struct msghdr message = { .msg_name = &from, .msg_namelen = sizeof from, .msg_iov = parts, .msg_iovlen = 2 };
	ssize_t got = recvmsg(wire, &message, MSG_DONTWAIT);
	size_t size;
	char *at = line;

	if (got < (ssize_t)sizeof header || !listening || from.sll_pkttype == PACKET_OUTGOING)
		return;
	size = (size_t)got - sizeof header;
	complete(frame, size, &header);
	at += sprintf(at, "paravirt: frame ");
	for (size_t n = 0; n < size; n += 3) {
		size_t left = size - n;
		uint32_t three = frame[n] << 16 | (left > 1 ? frame[n + 1] << 8 : 0) | (left > 2 ? frame[n + 2] : 0);
		*at++ = DIGITS[three >> 18];
		*at++ = DIGITS[three >> 12 & 63];
		*at++ = left > 1 ? DIGITS[three >> 6 & 63] : '=';
		*at++ = left > 2 ? DIGITS[three & 63] : '=';
	}
	*at++ = '\n';
	if (write(1, line, (size_t)(at - line)) < 0)
		exit(1);
}

static void obey(const char *line)
{
	unsigned long number;
	char what[16];
	int skipped;
	bool good = true;

	if (sscanf(line, "paravirt: %lu %15s %n", &number, what, &skipped) != 2)
		return;
	if (!strcmp(what, "send")) {
		good = send_frame(line + skipped);
	} else if (!strcmp(what, "listen")) {
		while (!bring_up())
			usleep(1000);
		listening = true;
	} else if (strcmp(what, "nothing")) {
		good = false;
	}
	dprintf(1, "paravirt: %lu %s\n", number, good ? "ok" : "error");
}

/* What Linux would say by itself on a new interface is none of the check's frames. */
static void be_quiet(const char *setting)
{
	int file = open(setting, O_WRONLY);

	if (file >= 0 && write(file, "1", 1) < 0)
		dprintf(1, "%s: cannot be set\n", setting);
	close(file);
}

int main(void)
{
	static char input[4 * LARGEST];
	size_t have = 0;
	struct termios terminal;
	int console = open("/dev/hvc0", O_RDWR);

	if (console < 0)
		return 1;
	dup2(console, 0);
	dup2(console, 1);
	/* Lines are longer than a terminal's. (Output stays as it is: newlines are enough for the kit.) */
	tcgetattr(0, &terminal);
	terminal.c_lflag &= ~(tcflag_t)(ECHO | ICANON);
	tcsetattr(0, TCSANOW, &terminal);
	be_quiet("/proc/sys/net/ipv6/conf/default/disable_ipv6");
	be_quiet("/proc/sys/net/ipv6/conf/all/disable_ipv6");
	control = socket(AF_INET, SOCK_DGRAM, 0);
	for (int round = 0; round < ROUNDS && !bring_up(); round++)
		usleep(10000);
	dprintf(1, "paravirt: ready\n");
	for (;;) {
		struct pollfd both[2] = { { 0, POLLIN, 0 }, { wire, POLLIN, 0 } };
		char *line = input, *end;
		poll(both, 2, wire < 0 ? 10 : -1);
		bring_up();
		if (both[1].revents)
			hear();
		if (!(both[0].revents & POLLIN))
			continue;
		ssize_t got = read(0, input + have, sizeof input - 1 - have);
		if (got <= 0)
			return 1;
		input[have += (size_t)got] = 0;
		while ((end = strchr(line, '\n'))) {
			*end = 0;
			obey(line);
			line = end + 1;
		}
		have -= (size_t)(line - input);
		memmove(input, line, have + 1);
		if (have == sizeof input - 1)
			have = 0;        /* no line is so long */
	}
}
