# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's services, as the backup VM calls them."""
