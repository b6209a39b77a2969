# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers with no protocol in them: durable writes, image files, pipelines."""
