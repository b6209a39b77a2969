# SPDX-License-Identifier: GPL-2.0-or-later
"""Readers of file systems. They run in the child alone, and import nothing of the rest."""
