# SPDX-License-Identifier: GPL-2.0-or-later
"""One module for each RPC service, each with one ``main(call)``. Its docstring says what it reads
and what it changes.
"""
