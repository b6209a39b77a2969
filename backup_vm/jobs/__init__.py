# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands do, without their words."""
