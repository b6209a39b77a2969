# SPDX-License-Identifier: GPL-2.0-or-later
# sparsebak: make test, make demo, make bench; make install-dom0, install-dom0-settings and install-vm for packages.
PYTHON ?= python3
PREFIX ?= /usr
LIB := $(PREFIX)/lib/sparsebak
VENV := .venv
READY := $(VENV)/.ready
# Half as many again as there are cores, for tests wait for disks, servers and clocks a third of their time.
WORKERS := $(shell expr $$(nproc) \* 3 / 2)

.PHONY: test test-system test-lvm test-zfs test-files test-ceph test-ui test-places test-roots test-qubes test-salt office demo fuzz faults powercut mutate together longlife machines crash audit coverage mutants pages lint bench bench-compare bench-guard bench-scale bench-office bench-profile bench-lvm setup packages rpm deb install-dom0 install-dom0-settings install-dom0-salt install-vm clean

# All parts run, whichever of them fail; the last lines say how each went, and what could not be run here.
test: setup packages
	@$(VENV)/bin/python tools/parts.py --workers $(WORKERS)

# Two machines with real systemd and the packages as installed: dom0, and a backup VM. As root; about two minutes.
test-system: setup packages
	$(VENV)/bin/pytest tests/system -v

# Tests on real LVM thin pools, in a VM, for machines whose kernel has no device-mapper.
test-lvm: setup packages
	$(VENV)/bin/python tools/lvm_vm.py tests/lvm -v

# Tests on real ZFS pools, in the same VM; the first time, ZFS's modules are built for its kernel.
test-zfs: setup packages
	$(VENV)/bin/python tools/zfs_vm.py tests/zfs -v

# Files in logical volumes, FAT and exFAT, beside what a kernel shows that has them, in the VM of test-places. Two minutes.
test-files: setup packages
	$(VENV)/bin/python tools/places_vm.py tests/files/test_vm.py -v

# Whole archives on a real Ceph: one monitor, OSD and S3 gateway on loopback. When root, installs them from the distribution.
CEPH := ceph-mon ceph-osd radosgw ceph-common
test-ceph: setup
	@command -v radosgw >/dev/null || [ "$$(id -u)" != 0 ] || \
	    (apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends $(CEPH)) >/dev/null
	SPARSEBAK_S3=ceph $(VENV)/bin/pytest tests/ceph tests/remote tests/attack/test_store_key.py -k "s3 or ceph" -v --timeout 600

# The page of sparsebak ui in Chromium without a window. When root, installs it from the distribution. axe-core is in a package
# for another driver of browsers, without which it comes. About four minutes.
test-ui: setup
	@command -v chromium >/dev/null || [ "$$(id -u)" != 0 ] || \
	    (apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends chromium) >/dev/null
	$(VENV)/bin/python -c 'import importlib.util as u; exit(u.find_spec("axe_playwright_python") is None)' || \
	    $(VENV)/bin/pip -q install --no-deps 'axe-playwright-python>=0.1.8'
	$(VENV)/bin/pytest tests/ui -v

# A whole life of an archive on each kind of mount and server: NFS, FAT, exFAT, NTFS, sshfs, quotas. Those that this machine's kernel
# lacks, in the VM. When root, installs the programs from the distribution. About ten minutes.
PLACES := sshfs ntfs-3g exfat-fuse exfatprogs dosfstools nfs-kernel-server nfs-common rpcbind quota strace
test-places: setup packages
	@command -v sshfs >/dev/null && command -v rpc.nfsd >/dev/null || [ "$$(id -u)" != 0 ] || \
	    (apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends $(PLACES)) >/dev/null
	SPARSEBAK_LONG=1 $(VENV)/bin/pytest tests/places -v --ignore=tests/places/test_kernel.py
	$(VENV)/bin/python tools/places_vm.py tests/places/test_kernel.py -v

# The same in roots of other distributions, made by debootstrap: TESTS="tests/unit -q" for some, ROOTS="trixie" for one.
test-roots:
	$(PYTHON) tools/roots.py $(addprefix --root=,$(ROOTS)) -- $(TESTS)

# tests/qubes against the real libraries: QUBES is a folder of Qubes OS' checkouts, or of such folders, one for each release.
test-qubes: setup packages
	$(VENV)/bin/python tools/real_qubes.py "$(QUBES)" -- $(TESTS)

# The Salt formula, applied twice by the real Salt in the machines of test-system. QUBES is a folder of Qubes OS' checkouts.
test-salt: setup packages
	$(VENV)/bin/python tools/real_salt.py "$(QUBES)" -- $(TESTS)

# Installs what sparsebak itself needs and no more, where there is no environment for the tests yet.
DEMO := $(if $(wildcard $(READY)),$(VENV),build/demo)
demo: $(DEMO)/.ready
	$(DEMO)/bin/python tools/demo.py

bench: setup packages
	$(VENV)/bin/python -m bench

# The same beside today's borg, borg 2 and restic, unpacked under build/peers, and Wyng: WYNG=path of its program.
bench-compare: setup packages
	$(VENV)/bin/python tools/bench_peers.py
	$(VENV)/bin/python -m bench --rounds 3

# A quick run of sparsebak alone, compared with those before it: says what got slower. BENCH=--keep adds it to them.
bench-guard: setup packages
	$(VENV)/bin/python -m bench.guard $(BENCH)

# Where the time goes, by stage.
bench-profile: setup packages
	$(VENV)/bin/python -m bench.profile

# Fifty laptops and upkeep through a year. Some minutes.
office: setup
	SPARSEBAK_LAPTOPS=50 SPARSEBAK_WEEKS=53 $(VENV)/bin/pytest tests/upkeep/test_year.py -v --timeout 0

# What it costs to find and look at the archives of many machines.
bench-office: setup
	$(VENV)/bin/python -m bench.office

# Time and memory of operations as an archive grows.
bench-scale: setup
	$(VENV)/bin/pip install --quiet matplotlib
	$(VENV)/bin/python -m bench.scale

bench-lvm: setup packages
	LVM_KERNEL=stock $(VENV)/bin/python tools/lvm_vm.py -m bench.lvm

# Fuzzes every parser for ten minutes each; FUZZ="TARGET --seconds N" for one.
fuzz: setup
	$(VENV)/bin/python -m tests.fuzz $(FUZZ)

# Every call of every command meets every kind of fault of a disk: hours. FAULTS=N for N calls of each kind.
FAULTS ?= all
faults: setup packages
	SPARSEBAK_FAULTS=$(FAULTS) $(VENV)/bin/pytest tests/faults -n auto --timeout 0

# Power cuts by the hundred, on three file systems; POWERCUT="xfs btrfs reflink --cuts 1000" for one pair.
POWERCUT ?=
CUT := $(VENV)/bin/python -m tests.powercut
powercut: setup packages
ifeq ($(POWERCUT),)
	$(CUT) ext4 ext4
	$(CUT) ext4 ext4 --full
	$(CUT) xfs btrfs reflink
	$(CUT) btrfs xfs reflink
else
	$(CUT) $(POWERCUT)
endif

# What make test tries in small, for as long as it takes: every change of every file of an archive and of dom0's state; all
# pairs of commands and calls at once (ROUNDS=2 times each); two years; three machines (SEED=7) for hundreds of steps (STEPS=1000)
# in a folder, over SFTP and on S3 (STORES="local ceph" for others), which
# tell at their end at which stages commands were killed, cut off and apart; death at every step.
TOLD_machines := -rP
LARGE_mutate := tests/mutation
LARGE_crash := tests/crash tests/reflink/test_long_run.py tests/remote/test_lock_failing.py
mutate together longlife machines crash: setup
	SPARSEBAK_LONG=1 $(if $(ROUNDS),SPARSEBAK_ROUNDS=$(ROUNDS)) $(if $(SEED),SPARSEBAK_SEED=$(SEED)) \
	    $(if $(STEPS),SPARSEBAK_STEPS=$(STEPS)) $(if $(STORES),SPARSEBAK_STORES="$(STORES)") \
	    $(VENV)/bin/pytest --timeout=0 -n 2 -v $(TOLD_$@) $(or $(LARGE_$@),tests/$@)

# What runs in dom0, in lines of code by module.
audit: setup
	@$(VENV)/bin/python -m tools.audit

# Which lines and branches of dom0's code the tests run.
coverage: setup packages
	$(VENV)/bin/python tools/coverage.py

# Changes the code of seals and frames in every small way and lists what no test notices; see docs/mutants.md.
mutants: setup
	$(VENV)/bin/mutmut run
	$(VENV)/bin/mutmut results

# Man pages and shell completion, from the command lines; from the declarations of structures the codes
# that they are compiled to and the tables of bytes in docs/.
pages: setup
	$(VENV)/bin/python -m tools.compiled
	$(VENV)/bin/python -m tools.tables
	$(VENV)/bin/python -m tools.pages

lint: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/mypy

setup: $(READY)

$(READY): pyproject.toml tools/make-venv
	tools/make-venv $(PYTHON) $(VENV) '[remote,parity,dev]'
	touch $(READY)

build/demo/.ready: pyproject.toml tools/make-venv
	tools/make-venv $(PYTHON) build/demo
	touch $@

packages:
	@tools/system-packages

install-dom0:
	install -d $(DESTDIR)$(LIB) $(DESTDIR)/etc/qubes-rpc $(DESTDIR)/etc/qubes/policy.d $(DESTDIR)$(PREFIX)/bin
	install -d -m 0700 $(DESTDIR)/etc/sparsebak $(DESTDIR)/var/lib/sparsebak
	tools/install-package $(DESTDIR)$(LIB) common wire dom0_agent -not -path wire/declared.py -not -path 'dom0_agent/admin/settings/*' -not -path dom0_agent/admin/cli/settings.py
	install -m 0755 dom0_agent/rpc/run-service $(DESTDIR)$(LIB)/dom0_agent/rpc/
	install -m 0755 dom0_agent/admin/on-removal $(DESTDIR)$(LIB)/dom0_agent/admin/
	install -m 0755 qubes-rpc/sparsebak.* $(DESTDIR)/etc/qubes-rpc/
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 0644 systemd/dom0/* $(DESTDIR)$(PREFIX)/lib/systemd/system/
	install -m 0664 policy/80-sparsebak.policy $(DESTDIR)/etc/qubes/policy.d/
	install -D -m 0644 policy/79-sparsebak-4.2.policy $(DESTDIR)$(LIB)/policy/79-sparsebak-4.2.policy
	cd $(DESTDIR)/etc/qubes/policy.d && if [ -e 30-sparsebak.policy ]; then mv 30-sparsebak.policy 30-sparsebak.policy.old; fi
	tools/install-command $(DESTDIR)$(PREFIX)/bin/sparsebak-agent $(LIB) dom0_agent.admin.cli
	install -d $(DESTDIR)$(PREFIX)/share/applications
	install -m 0644 menu/*.desktop $(DESTDIR)$(PREFIX)/share/applications/
	cd share/sparsebak-dom0 && find . -type f -exec install -D -m 0644 {} $(DESTDIR)$(PREFIX)/share/{} \;

# Settings of qubes and dom0's configuration, on Qubes OS: without it they are not backed up.
install-dom0-settings:
	tools/install-package $(DESTDIR)$(LIB) dom0_agent/admin/settings dom0_agent/admin/cli/settings.py
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 0644 systemd/dom0-settings/* $(DESTDIR)$(PREFIX)/lib/systemd/system/

# States for Qubes' Salt that do what docs/qubes.md says to type.
install-dom0-salt:
	install -d $(DESTDIR)/srv/salt/sparsebak
	install -m 0644 salt/sparsebak/* $(DESTDIR)/srv/salt/sparsebak/

install-vm:
	install -d $(DESTDIR)$(LIB) $(DESTDIR)$(PREFIX)/bin
	tools/install-package $(DESTDIR)$(LIB) common wire backup_vm
	install -D -p -m 0644 -t $(DESTDIR)$(LIB)/backup_vm/ui/page backup_vm/ui/page/*
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 0644 systemd/vm/* $(DESTDIR)$(PREFIX)/lib/systemd/system/
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/sysusers.d systemd/vm-sysusers/*
	install -D -m 0755 qubes-vm/post-install.d/50-sparsebak.sh $(DESTDIR)/etc/qubes/post-install.d/50-sparsebak.sh
	install -d $(DESTDIR)/etc/qubes-rpc
	install -m 0755 qubes-vm/rpc/sparsebak.* $(DESTDIR)/etc/qubes-rpc/
	tools/install-command $(DESTDIR)$(PREFIX)/bin/sparsebak $(LIB) backup_vm.cli
	tools/install-command $(DESTDIR)$(PREFIX)/bin/spbk-assemble $(LIB) backup_vm.cli.spbk_assemble
	cd share/sparsebak-vm && find . -type f -exec install -D -m 0644 {} $(DESTDIR)$(PREFIX)/share/{} \;

# sparsebak-dom0 and sparsebak-vm for Fedora and dom0, into build/rpm; sparsebak-vm for Debian, into build/deb.
rpm deb:
	tools/build-packages $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
