#!/bin/sh
# Called by udhcpc with the DHCP server's options in its environment (see `udhcpc --help`).
# Files in /run/guest/net, one per NIC, are combined into /etc/resolv.conf.
# PID 1 considers a NIC configured when its .address file exists.

state=${GUEST_NET:-/run/guest/net}
resolv_conf=${RESOLV_CONF:-/etc/resolv.conf}

# RFC 3442: when classless routes are given, the router option is ignored.
routes() {
    if [ -n "$staticroutes" ]; then
        set -- $staticroutes
        while [ $# -ge 2 ]; do
            route_to "$1" "$2"
            shift 2
        done
        return
    fi
    for gateway in $router; do
        route_to 0.0.0.0/0 "$gateway"
        return
    done
}

# A gateway outside the address' own prefix (a /32, say) is first reached by a separate host route.
route_to() {
    if [ "$2" = 0.0.0.0 ]; then
        ip route replace "$1" dev "$interface" metric "$metric"
        return
    fi
    ip route replace "$1" via "$2" dev "$interface" metric "$metric" 2>/dev/null && return
    ip route replace "$2/32" dev "$interface" metric "$metric"
    ip route replace "$1" via "$2" dev "$interface" metric "$metric"
}

resolver() {
    {
        [ -n "$search$domain" ] && echo "search ${search:-$domain}"
        for server in $dns; do echo "nameserver $server"; done
    } >"$state/$interface.resolv"
    cat "$state"/*.resolv >"$resolv_conf"
}

case "$1" in
deconfig)
    ip link set "$interface" up
    ip -4 addr flush dev "$interface"
    ;;
bound | renew)
    metric=$((100 + ${interface##*[!0-9]}))
    if [ "$(cat "$state/$interface.address" 2>/dev/null)" != "$ip/$mask" ] || [ "$1" = bound ]; then
        ip -4 addr flush dev "$interface"
        [ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
        ip addr add "$ip/$mask" broadcast "${broadcast:-+}" dev "$interface"
    fi
    routes
    resolver
    # cloud-init's host name takes precedence over DHCP's.
    [ -n "$hostname" ] && [ ! -e /run/guest/hostname.fixed ] && hostname "$hostname"
    echo "$ip/$mask" >"$state/$interface.address"
    kill -CHLD 1
    ;;
esac
