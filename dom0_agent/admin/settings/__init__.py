# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube's settings and dom0's configuration: taken down, planned, applied one by one."""
