# SPDX-License-Identifier: GPL-2.0-or-later
"""Where qubesd and qrexec are."""

QUBESD_SOCKET = "/var/run/qubesd.sock"
QREXEC_SERVICES_DIR = "/etc/qubes-rpc"
QREXEC_CLIENT = "/usr/lib/qubes/qrexec-client"
