# SPDX-License-Identifier: GPL-2.0-or-later
# In the template of the backup VM: the archive manager.
sparsebak-vm:
  pkg.installed: []
