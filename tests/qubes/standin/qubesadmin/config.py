# SPDX-License-Identifier: GPL-2.0-or-later
"""Where qubesd is."""

QUBESD_SOCKET = "/var/run/qubesd.sock"
QREXEC_SERVICES_DIR = "/etc/qubes-rpc"
