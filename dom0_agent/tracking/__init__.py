# SPDX-License-Identifier: GPL-2.0-or-later
"""What dom0 remembers of each volume, and how it moves on."""
