#!/bin/bash
# Make a bootable container's root tree, in TREE, into what OSTree deploys. As in the original, no command's failure is
# heeded: what cannot be done is left undone, and the end is always success, even where TREE is no directory.
# shellcheck disable=SC2164 # that is the original's fault: all that follows then happens in the working directory

if [ "$(id -u)" != 0 ]; then
    echo "Run as superuser"
    exit 1
fi
if [ -z "$TREE" ]; then
    echo "TREE is empty: name the tree to prune"
    exit 1
fi
# shellcheck source-path=SCRIPTDIR
source "${0%/*}/faults.sh"
heed_faults prune "$(cat "$TREE/$FAULTS" 2>/dev/null)" "$TREE"

pushd "$TREE"

echo "Resetting the OSTree directories"
rm -rf sysroot ostree
mkdir sysroot
ln -s sysroot/ostree ostree

echo "Moving users and groups to usr/lib"
grep -v root etc/passwd >>usr/lib/passwd
grep -v 'root\|wheel' etc/group >>usr/lib/group
echo 'root:x:0:0:root:/root:/bin/bash' >etc/passwd
printf '%s\n' 'root:x:0:' 'wheel:x:10:' >etc/group
rm -f etc/.pwd.lock etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/subuid- etc/subgid- .dockerenv

echo "Moving etc to usr/etc"
if [ -d usr/etc ]; then
    find usr/etc
    rsync -aAX --numeric-ids --checksum --links usr/etc/ etc
    rm -rf usr/etc
fi
mv etc usr/etc

echo "Moving var to usr"
rsync -aAX --numeric-ids var/lib/ usr/lib
rm -rf var/lib
mkdir -p usr/share/factory
rsync -aAX --numeric-ids var/ usr/share/factory/var

echo "Emptying what is made at boot"
for directory in var run tmp proc sys dev boot; do
    rm -rf "$directory"
    mkdir "$directory"
done

echo "Linking the package database of the base"
rm -rf usr/lib/.build-id usr/lib/sysimage/rpm-ostree-base-db
mkdir -p usr/lib/sysimage/rpm-ostree-base-db
rsync -a --link-dest="$PWD/usr/share/rpm" usr/share/rpm/ usr/lib/sysimage/rpm-ostree-base-db

echo "Setting modes"
chmod 750 usr/etc/audit usr/etc/audit/rules.d usr/etc/firewalld usr/etc/polkit-1/localauthority
chmod 640 usr/etc/audit/auditd.conf usr/etc/audit/audit.rules
chmod 700 usr/etc/grub.d usr/etc/nftables usr/etc/polkit-1/rules.d usr/etc/ssh/sshd_config.d usr/lib/ostree-boot/efi
chmod 600 usr/etc/ssh/sshd_config

echo "Setting capabilities"
setcap cap_net_admin,cap_net_raw=eip usr/bin/dumpcap
setcap cap_sys_nice=ep usr/bin/kwin_wayland
setcap cap_setgid=ep usr/bin/newgidmap
setcap cap_setuid=ep usr/bin/newuidmap
setcap cap_net_bind_service=ep usr/bin/rcp
setcap cap_net_bind_service=ep usr/bin/rlogin
setcap cap_net_bind_service=ep usr/bin/rsh
setcap cap_sys_admin=p usr/bin/sunshine
setcap cap_dac_read_search,cap_setgid,cap_setuid=p usr/libexec/sssd/krb5_child
setcap cap_dac_read_search=p usr/libexec/sssd/ldap_child
setcap cap_setgid,cap_setuid=p usr/libexec/sssd/selinux_child
setcap cap_dac_read_search=p usr/libexec/sssd/sssd_pam

chgrp polkitd usr/etc/polkit-1/localauthority usr/etc/polkit-1/rules.d

if [ -n "$RESET_TIMESTAMP" ]; then
    echo "Resetting times"
    find . -exec touch --no-dereference -t "${TIMESTAMP:-197001010100}" {} +
    find . -type f -exec setfattr -x user.overlay.impure {} + 2>/dev/null
fi

popd
exit 0
