#!/usr/bin/env bash
# Process 1 of the User-Mode-Linux kernel that runner.py starts: one NFS server, two mounts of it, then the command.
#
# The root is the host's own, so whatever is written outside the tmpfs mounts made here lands on the host.
# Kernel command line: job=DIRECTORY, where `job` is read from and stdout, stderr, setup.log and status are left.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /mnt
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
ip link set lo up
hostname two-clients

job=$(sed -n 's/.*\bjob=\([^ ]*\).*/\1/p' /proc/cmdline)
# Sets version, options, directory and command.
. "$job/job"

load_modules() {
  mkdir -p /run/modules/lib
  ln -s /usr/lib/uml/modules /run/modules/lib/modules
  modprobe -d /run/modules -a loop nfsd nfs nfsv3 nfsv4
}

make_volume() {
  mkdir -p /mnt/image /mnt/volume /mnt/a /mnt/b
  mount -t tmpfs -o size=900m tmpfs /mnt/image
  truncate -s 800M /mnt/image/disk
  mkfs.ext4 -q /mnt/image/disk
  mount -o loop /mnt/image/disk /mnt/volume
  chmod 777 /mnt/volume
}

start_server() {
  mount -t nfsd nfsd /proc/fs/nfsd
  mount -t tmpfs tmpfs /var/lib/nfs
  mkdir -p /var/lib/nfs/{rpc_pipefs,v4recovery,sm,sm.bak,nfsdcltrack}
  touch /var/lib/nfs/{etab,rmtab,xtab,state}
  mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs
  rpcbind -w
  until rpcinfo -p 127.0.0.1 >/dev/null 2>&1; do sleep 0.1; done
  exportfs -o rw,sync,no_root_squash,no_subtree_check,insecure,fsid=0 127.0.0.1:/mnt/volume
  # A grace period of the usual 90 s would keep the first open waiting.
  echo 10 >/proc/fs/nfsd/nfsv4leasetime
  echo 10 >/proc/fs/nfsd/nfsv4gracetime
  rpc.mountd
  rpc.statd --no-notify
  rpc.nfsd -V 3 -V 4.2 4
}

mount_clients() {
  local path=/
  [ "$version" = 3 ] && path=/mnt/volume
  for side in a b; do
    # nosharecache: each mount has attribute, name and page caches of its own, as two machines have.
    until mount -t nfs -o "vers=$version,nosharecache${options:+,$options}" "127.0.0.1:$path" "/mnt/$side"; do
      sleep 0.2
    done
  done
}

(
  set -e
  load_modules
  make_volume
  start_server
  mount_clients
) >"$job/setup.log" 2>&1

if mountpoint -q /mnt/a && mountpoint -q /mnt/b; then
  # Written through once a second: a run that is cut off still shows how far it came.
  while sleep 1; do sync "$job/stdout" "$job/stderr"; done &
  (cd "$directory" && exec "${command[@]}") </dev/null >"$job/stdout" 2>"$job/stderr"
  echo $? >"$job/status"
fi
sync
echo o >/proc/sysrq-trigger
sleep 5
