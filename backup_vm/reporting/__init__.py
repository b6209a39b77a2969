# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive on one page of HTML that needs nothing else: no network, no script."""
