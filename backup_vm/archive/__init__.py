# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive: its format, and everything that reads or writes it."""
