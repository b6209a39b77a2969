# SPDX-License-Identifier: GPL-2.0-or-later
# All that is done in dom0. The template's part is sparsebak.install.
include:
  - sparsebak.create
  - sparsebak.configure
