#!/bin/bash
# One node of the cluster: a process tree in its own namespaces. Killing its PID 1 is a power failure.
#
#   node-init.sh outside    joins the node's control groups, creates the namespaces and becomes `inside`
#   node-init.sh inside     PID 1: creates the node's file system, waits for its links, runs and restarts its daemons
#
# Environment, set by cluster/node.py:
#   NODE ADDRESS PREFIX_LENGTH GATEWAY   name and addresses;  PEERS "podrange=address ..."
#   NODE_DIR     this node's folder: etc/ (configuration), disk/ (persistent), root/ (mount point)
#   KUBERNETES_DIR CORE_DIR   folders with the programs of Kubernetes, and with containerd's
#   RUNC_DIR     a folder with a newer runc than the machine's, or empty
#   STORAGE_DIR  the data of the CSI driver's volumes, the same for every node
#   HIDE         a folder of the machine that the node must not see (it contains all keys)
#   UNIFIED      not empty where control groups are of version 2
#   CGROUPS      directories to join, one per hierarchy;  HIERARCHIES "options=directory ..." to mount again
#   CLUSTER_CIDR all pods' range, for kube-proxy
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8

say() { echo "$(date +%H:%M:%S.%3N) $NODE: $*"; }

outside() {
    for dir in $CGROUPS; do echo $$ > "$dir/cgroup.procs"; done
    exec unshare --mount --propagation private --pid --fork --kill-child=SIGKILL --net --uts --ipc --cgroup -- \
        bash "$0" inside
}

make_devices() {
    mount -t tmpfs -o mode=755,size=64k,nosuid devices dev
    # A selection: with the machine's whole /dev a privileged pod would have access to the machine's disk.
    local name number
    for name in null zero full random urandom tty kmsg fuse kvm net/tun vhost-net vhost-vsock userfaultfd loop-control; do
        [ -c "/dev/$name" ] || continue
        mkdir -p "dev/$(dirname "$name")"
        number=$(stat -c '0x%t 0x%T' "/dev/$name")
        # shellcheck disable=SC2086
        mknod -m "$(stat -c %a "/dev/$name")" "dev/$name" c $number
    done
    # For volumes in Block mode. Their backing files are the same for the whole machine.
    if [ -c dev/loop-control ]; then
        for number in {0..63}; do mknod -m 660 "dev/loop$number" b 7 "$number"; done
    fi
    mkdir dev/pts dev/shm dev/mqueue
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
    mount -t tmpfs -o mode=1777,nosuid,nodev shm dev/shm
    mount -t mqueue mqueue dev/mqueue
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    ln -s /proc/self/fd/0 dev/stdin
    ln -s /proc/self/fd/1 dev/stdout
    ln -s /proc/self/fd/2 dev/stderr
    ln -s /proc/kcore dev/core
}

# Version 2: the node's group is its root, and a group that enables controllers for children must contain no process.
make_unified_cgroup() {
    local pid controller
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mkdir sys/fs/cgroup/init
    # The starting process, which has pid 0 here because it is outside of this PID namespace, is moved from outside.
    while grep -qx 0 sys/fs/cgroup/cgroup.procs; do sleep 0.02; done
    for pid in $(cat sys/fs/cgroup/cgroup.procs); do
        echo "$pid" > sys/fs/cgroup/init/cgroup.procs 2> /dev/null || true
    done
    for controller in $(cat sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" > sys/fs/cgroup/cgroup.subtree_control
    done
}

make_cgroups() {
    if [ -n "$UNIFIED" ]; then
        make_unified_cgroup
        return
    fi
    mount -t tmpfs -o mode=755 cgroup sys/fs/cgroup
    local pair
    for pair in $HIERARCHIES; do
        mkdir "sys/fs/cgroup/${pair#*=}"
        mount -t cgroup -o "${pair%%=*}" cgroup "sys/fs/cgroup/${pair#*=}"
    done
    # The named hierarchy has options with an equals sign, which the list above cannot represent.
    if [ -d "/sys/fs/cgroup/systemd" ] && grep -q ':name=systemd:' /proc/self/cgroup; then
        mkdir sys/fs/cgroup/systemd
        mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
    fi
    local link
    for link in /sys/fs/cgroup/*; do
        if [ -L "$link" ]; then cp -P "$link" sys/fs/cgroup/; fi
    done
}

make_root() {
    local name
    mount -t tmpfs -o mode=755,size=2g "$NODE" "$NODE_DIR/root"
    cd "$NODE_DIR/root"
    mkdir upper work merged
    mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay merged
    cd merged

    # The node's disk. An overlay cannot be another overlay's upper, and a disk must keep its data without power.
    for name in kubelet containerd hyperlet volumes; do
        mkdir -p "$NODE_DIR/disk/$name" "var/lib/$name"
        mount --bind "$NODE_DIR/disk/$name" "var/lib/$name"
    done
    mkdir -p var/lib/storage
    mount --bind "$STORAGE_DIR" var/lib/storage
    mkdir -p "$NODE_DIR/disk/log" var/log/pods
    mount --bind "$NODE_DIR/disk/log" var/log
    mkdir -p opt/kubernetes opt/containerd opt/cni/bin usr/lib/cni
    mount --bind "$KUBERNETES_DIR" opt/kubernetes
    mount -o remount,bind,ro opt/kubernetes
    mount --bind "$CORE_DIR" opt/containerd
    mount -o remount,bind,ro opt/containerd
    if [ -n "$RUNC_DIR" ]; then
        mkdir opt/runc
        mount --bind "$RUNC_DIR" opt/runc
        mount -o remount,bind,ro opt/runc
    fi
    # Plugins that are installed in the usual folder of most clusters are used here too.
    mount --bind usr/lib/cni opt/cni/bin

    mount -t proc proc proc
    mount -t sysfs sysfs sys
    make_cgroups
    mount -t tmpfs -o mode=755,nosuid,nodev run run
    mount -t tmpfs -o mode=1777,nosuid,nodev tmp tmp
    mkdir -p run/lock run/unmasked/proc run/unmasked/sys
    # In a pod's user namespace the kernel mounts proc and sysfs only where the node has them with nothing mounted over them, and
    # a boot id is mounted over the node's own (below).
    mount -t proc proc run/unmasked/proc
    mount -t sysfs sysfs run/unmasked/sys
    make_devices

    rm -rf etc/cni/net.d etc/kubernetes var/lib/cni
    mkdir -p etc/cni/net.d etc/kubernetes etc/containerd
    cp -r "$NODE_DIR/etc/kubernetes/." etc/kubernetes/
    cp "$NODE_DIR/etc/containerd.toml" etc/containerd/config.toml
    cp "$NODE_DIR/etc/cni.conflist" etc/cni/net.d/10-pods.conflist
    # The logind substitute, for graceful shutdowns. The machine's own drop-ins are not this node's.
    cp "$NODE_DIR/etc/dbus.conf" "$NODE_DIR/etc/logind.py" etc/
    rm -rf etc/systemd/logind.conf.d
    mkdir -p run/dbus
    if [ -e "$NODE_DIR/bridges" ]; then cp "$NODE_DIR/bridges" etc/bridges; fi
    for name in hostname hosts resolv.conf machine-id; do
        # Remove first: on many machines these are links to other places.
        rm -f "etc/$name"
        cp "$NODE_DIR/etc/$name" "etc/$name"
    done
    if [ -d ".$HIDE" ]; then mount -t tmpfs -o mode=700,size=4k hidden ".$HIDE"; fi

    # A machine that was powered off and on has another boot id; the kernel's would stay the same.
    cat /proc/sys/kernel/random/uuid > run/boot_id
    mount --bind run/boot_id proc/sys/kernel/random/boot_id

    mkdir run/old-root
    pivot_root . run/old-root
    cd /
    umount -l /run/old-root
    rmdir /run/old-root
    # Bidirectional mounts of pods need it. The node's mounts still end with its namespace.
    mount --make-rshared /
}

make_network() {
    local pair name
    ip link set lo up
    until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
    for name in net/ipv4/ip_forward net/bridge/bridge-nf-call-iptables net/ipv6/conf/all/forwarding; do
        if [ -e "/proc/sys/$name" ]; then echo 1 > "/proc/sys/$name"; fi
    done
    ip address add "$ADDRESS/$PREFIX_LENGTH" dev eth0
    ip link set eth0 up
    ip link set eth1 up
    ip route add default via "$GATEWAY"
    # kubelet looks for a cloud's metadata there; an immediate refusal saves 6 s of waiting.
    ip route add unreachable 169.254.0.0/16
    for pair in $PEERS; do ip route add "${pair%%=*}" via "${pair#*=}"; done
    make_bridges
}

# As an administrator's network configuration does at every boot; `python -m cluster bridge` wrote the list.
make_bridges() {
    local bridge port
    [ -e /etc/bridges ] || return 0
    while read -r bridge port; do
        ip link add "$bridge" type bridge
        if [ -n "$port" ]; then ip link set "$port" master "$bridge"; fi
        ip link set "$bridge" up
    done < /etc/bridges
}

# Restarts daemons that end, as a service manager does. One shell is enough: it also reaps the runtime's orphans.
declare -A daemons
start_daemon() {
    local name=$1 log=$2
    case $name in
    dbus)
        dbus-daemon --config-file=/etc/dbus.conf --nofork --nopidfile --nosyslog >&"$log" 2>&1 < /dev/null & ;;
    logind)
        /usr/bin/python3 -I -S -E /etc/logind.py >&"$log" 2>&1 < /dev/null & ;;
    containerd)
        # Its own folder first: Debian's package may have an older shim.
        PATH=/opt/containerd:/opt/runc:$PATH /opt/containerd/containerd --config /etc/containerd/config.toml --log-level warn \
            >&"$log" 2>&1 < /dev/null & ;;
    kubelet)
        /opt/kubernetes/kubelet --config=/etc/kubernetes/kubelet.json --kubeconfig=/etc/kubernetes/kubelet.kubeconfig \
            --hostname-override="$NODE" --node-ip="$ADDRESS" --v=1 >&"$log" 2>&1 < /dev/null & ;;
    kube-proxy)
        /opt/kubernetes/kube-proxy --kubeconfig=/etc/kubernetes/kube-proxy.kubeconfig --proxy-mode=iptables \
            --hostname-override="$NODE" --cluster-cidr="$CLUSTER_CIDR" --conntrack-max-per-core=0 \
            --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 --v=1 \
            >&"$log" 2>&1 < /dev/null & ;;
    esac
    daemons[$!]=$name
}

supervise() {
    declare -A logs=([containerd]=$containerd_log [kubelet]=$kubelet_log [kube-proxy]=$proxy_log)
    logs+=([dbus]=$logind_log [logind]=$logind_log)
    local pid name running
    start_daemon dbus "${logs[dbus]}"
    start_daemon logind "${logs[logind]}"
    start_daemon containerd "${logs[containerd]}"
    until [ -S /run/containerd/containerd.sock ]; do sleep 0.02; done
    # A kubelet that finds no logind when it starts disables graceful shutdown, and does not look again.
    for _ in {1..1000}; do
        if [ -e /run/logind.ready ]; then break; fi
        sleep 0.02
    done
    start_daemon kubelet "${logs[kubelet]}"
    start_daemon kube-proxy "${logs[kube-proxy]}"
    while :; do
        wait -n "${!daemons[@]}" 2> /dev/null || true
        sleep 1
        # Of several daemons that end in that second (kubelet follows containerd) `wait` reports only one.
        running=" $(jobs -rp | tr '\n' ' ')"
        for pid in "${!daemons[@]}"; do
            case $running in *" $pid "*) continue ;; esac
            name=${daemons[$pid]}
            unset "daemons[$pid]"
            say "$name ended, starting it again"
            start_daemon "$name" "${logs[$name]}"
        done
    done
}

inside() {
    # Opened before the folder with the logs is hidden from the node.
    exec {containerd_log}>> "$NODE_DIR/../../logs/$NODE-containerd.log"
    exec {kubelet_log}>> "$NODE_DIR/../../logs/$NODE-kubelet.log"
    exec {proxy_log}>> "$NODE_DIR/../../logs/$NODE-kube-proxy.log"
    exec {logind_log}>> "$NODE_DIR/../../logs/$NODE-logind.log"
    hostname "$NODE"
    make_root
    make_network
    export AWS_EC2_METADATA_DISABLED=true
    ulimit -c 0
    say "starting D-Bus, logind, containerd, kubelet, kube-proxy"
    supervise
}

"$1"
