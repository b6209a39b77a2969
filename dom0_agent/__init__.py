# SPDX-License-Identifier: GPL-2.0-or-later
"""The dom0 side of sparsebak: rotates snapshots, finds what changed, seals it, and opens it again
on restore.

Everything here runs with dom0's rights. It may import ``wire`` and ``common``, never
``backup_vm``.
"""
