# SPDX-License-Identifier: GPL-2.0-or-later
"""What is shown, and what is typed."""
