/*
 * What runs in a Linux guest whose block frontend is judged: does to /dev/xvda what the kit types on the console.
 *
 *     kit     paravirt: NUMBER read SECTOR COUNT | write SECTOR COUNT PATTERN | flush | size | nothing
 *     guest   paravirt: ready
 *     guest   paravirt: NUMBER ok [BASE64] | paravirt: NUMBER error
 *
 * Each job is a process, and each access one pread(2) or pwrite(2) past the page cache, so that nothing but the driver
 * decides which requests it becomes. (Not lseek(2): on a block device it waits for reads under way.) Statically linked,
 * for a ramdisk:
 *
 *     gcc -static -O2 -o disk disk.c
 *
 * Copyright the paravirt authors. SPDX-License-Identifier: MIT
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <termios.h>
#include <unistd.h>

#define DISK "/dev/xvda"
#define SECTOR 512
#define MOST 4096                        /* sectors of one access: 2 MiB */

static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

struct job {
	unsigned long number, sector, count;
	char what[16], pattern[1024];
	uint8_t *data;
	size_t size;                     /* of what the answer brings */
};

/* Answer in one write(2), so that the lines of jobs at the same time do not mix. */
static void answer(const struct job *job, bool good)
{
	char *line = malloc(64 + (job->size + 2) / 3 * 4), *at = line;

	at += sprintf(at, "paravirt: %lu %s", job->number, good ? "ok" : "error");
	if (good && job->size)
		*at++ = ' ';
	for (size_t n = 0; good && n < job->size; n += 3) {
		size_t left = job->size - n;
		uint32_t three = job->data[n] << 16 | (left > 1 ? job->data[n + 1] << 8 : 0) | (left > 2 ? job->data[n + 2] : 0);
		*at++ = DIGITS[three >> 18];
		*at++ = DIGITS[three >> 12 & 63];
		*at++ = left > 1 ? DIGITS[three >> 6 & 63] : '=';
		*at++ = left > 2 ? DIGITS[three & 63] : '=';
	}
	*at++ = '\n';
	if (write(1, line, (size_t)(at - line)) < 0)
		_exit(1);
}

static bool fill(uint8_t *data, size_t size, const char *pattern)
{
	size_t length = strlen(pattern) / 2;

	for (size_t n = 0; n < size; n++) {
		unsigned byte;
		if (!length || sscanf(pattern + n % length * 2, "%2x", &byte) != 1)
			return false;
		data[n] = (uint8_t)byte;
	}
	return true;
}

static bool work(struct job *job)
{
	size_t size = job->count * SECTOR;
	off_t at = (off_t)job->sector * SECTOR;
	int disk;

	if (!strcmp(job->what, "nothing"))
		return true;
	while ((disk = open(DISK, O_RDWR | O_DIRECT)) < 0)
		usleep(1000);            /* it is not there yet */
	if (job->count > MOST || posix_memalign((void **)&job->data, 4096, size + 4096))
		return false;
	if (!strcmp(job->what, "read")) {
		job->size = size;
		return pread(disk, job->data, size, at) == (ssize_t)size;
	}
	if (!strcmp(job->what, "write"))
		return fill(job->data, size, job->pattern) && pwrite(disk, job->data, size, at) == (ssize_t)size;
	if (!strcmp(job->what, "flush"))
		return fsync(disk) == 0;
	if (!strcmp(job->what, "size")) {
		uint64_t bytes, sectors;
		if (ioctl(disk, BLKGETSIZE64, &bytes))
			return false;
		sectors = bytes / SECTOR;
		memcpy(job->data, &sectors, job->size = sizeof sectors);
		return true;
	}
	return false;
}

int main(void)
{
	char line[4096];
	struct termios terminal;
	int console = open("/dev/hvc0", O_RDWR);

	if (console < 0)
		return 1;
	dup2(console, 0);
	dup2(console, 1);
	tcgetattr(0, &terminal);
	terminal.c_lflag &= ~(tcflag_t)ECHO;
	tcsetattr(0, TCSANOW, &terminal);
	signal(SIGCHLD, SIG_IGN);
	dprintf(1, "paravirt: ready\n");
	while (fgets(line, sizeof line, stdin)) {
		struct job job = { 0 };
		if (sscanf(line, "paravirt: %lu %15s %lu %lu %1023s", &job.number, job.what, &job.sector, &job.count,
			   job.pattern) < 2)
			continue;
		if (fork() == 0) {
			answer(&job, work(&job));
			_exit(0);
		}
	}
	return 0;
}
