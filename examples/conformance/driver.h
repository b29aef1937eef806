/*
 * How every driver in C begins: the latest of Xen's interfaces, barriers for the macros of its ring.h, and no fault.
 *
 * Copyright the paravirt authors. SPDX-License-Identifier: MIT
 */
#ifndef DRIVER_H
#define DRIVER_H

#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
#define xen_mb() __sync_synchronize()
#define xen_rmb() __sync_synchronize()
#define xen_wmb() __sync_synchronize()
#include <xen/xen.h>
#include <xen/io/ring.h>

#ifndef FAULT
#define FAULT 0
#endif

#endif
