# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator starts in dom0; no call gets here."""
