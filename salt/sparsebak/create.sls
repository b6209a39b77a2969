# SPDX-License-Identifier: GPL-2.0-or-later
# In dom0: the backup VM, from the template that pillar names, or dom0's default one.
{% set given = salt["pillar.get"]("sparsebak", {}) %}
{% set name = given.get("backup-vm", "backup") %}

sparsebak-backup-vm:
  qvm.vm:
    - name: {{ name | json }}
    - present:
      - label: {{ given.get("label", "gray") | json }}
{% if given.get("template") %}
      - template: {{ given["template"] | json }}
{% endif %}
    - prefs:
      - include-in-backups: false
