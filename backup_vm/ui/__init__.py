# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak ui``: a page in a browser, served on loopback to the user who started it.

The server parses no archive and holds no lock: everything it shows or does is a run of
``sparsebak`` itself as a child process, so that the page can do what the
command line can, and nothing else.
"""
