# SPDX-License-Identifier: GPL-2.0-or-later
"""What takes a volume's new contents beside the stand-in for qubesd: shell scripts to be filled
in.
"""

IMPORT = """#!/bin/sh
# Takes a volume's new contents as admin.vm.volume.ImportWithSize does: all of it or nothing,
# written by root through sudo.
read -r size
into=$(cat "{places}/$QREXEC_REQUESTED_TARGET+$1")
if [ "$(id -u)" -eq 0 ] && command -v sudo >/dev/null; then sudo="sudo -n"; else sudo=; fi
$sudo dd of="$into.import" bs=64K iflag=fullblock conv=sparse 2>/dev/null
got=$(stat -c %s "$into.import")
if [ "$got" -eq "$size" ]; then
    if [ -f "$into" ]; then mv "$into" "$into.revision"; fi
    mv "$into.import" "$into"
    printf '0\\0'
else
    rm -f "$into.import"
    said='not enough data (copied %s bytes, expected %s bytes)'
    printf "2\\\\0QubesException\\\\0\\\\0$said\\\\0" "$got" "$size"
fi
"""

QUERY = """#!/bin/sh
# The real qubesd-query, whose socket the real import script names by its place on Qubes.
for word do
    shift
    [ "$word" != /var/run/qubesd.internal.sock ] || word={socket}
    set -- "$@" "$word"
done
exec {python} -P {tool} "$@"
"""
