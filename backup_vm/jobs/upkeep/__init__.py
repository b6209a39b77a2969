# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeping all archives beneath a place, without any key: prune, scrub a share, check their age,
copy, report.
"""
