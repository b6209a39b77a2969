# SPDX-License-Identifier: GPL-2.0-or-later
# In dom0: the agent's configuration, the tags that policy goes by, and the timers. All of it may be done again.
{% set given = salt["pillar.get"]("sparsebak", {}) %}
{% set name = given.get("backup-vm", "backup") %}
include:
  - sparsebak.create

sparsebak-setup:
  cmd.run:
    - name: sparsebak-agent setup "$SPARSEBAK_BACKUP_VM"
    # Not where it has nothing to do. Where it cannot tell, it is run, and says what is wrong.
    - unless: would=$(sparsebak-agent setup --dry-run "$SPARSEBAK_BACKUP_VM") && ! echo "$would" | grep -q "^would "
    - env:
      - SPARSEBAK_BACKUP_VM: {{ name | json }}
    - require:
      - qvm: sparsebak-backup-vm
{% for unit in ("sparsebak-agent.socket", "sparsebak-monitor.timer", "sparsebak-settings.timer", "sparsebak-backup-vm.timer", "sparsebak-check.timer") %}

{{ unit }}:
  service.running:
    - enable: true
    - require:
      - cmd: sparsebak-setup
{% endfor %}
