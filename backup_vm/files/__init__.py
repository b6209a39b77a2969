# SPDX-License-Identifier: GPL-2.0-or-later
"""Files out of sessions: a child without rights parses file systems; this side never does."""
