# Shared by up, down and exec: names, and the two ways of having a namespace. Sourced, not run.
#
# As root a named network namespace (ip netns). Otherwise, where the machine allows it, a user + network namespace held by a sleeping
# process whose pid is kept in a folder of the user's own; nothing of it touches the root namespace.

NS=${USTACK_NETNS:-ustack}
DEV=${USTACK_TUN:-ustack0}
KERNEL_ADDR=${USTACK_KERNEL_ADDR:-192.0.2.1/24}
TUN_NODE=${USTACK_TUN_NODE:-/dev/net/tun}
STATE=${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}/ustack-netns-$(id -u)}/ustack-netns
PIDFILE=$STATE/$NS.pid

is_root() { [ "$(id -u)" = 0 ] && [ -z "${USTACK_ROOTLESS:-}" ]; }

holder() {  # pid of the process that holds the rootless namespace, if it lives
  [ -r "$PIDFILE" ] || return 1
  local pid
  pid=$(cat "$PIDFILE")
  [ -n "$pid" ] && [ -d "/proc/$pid" ] && grep -qa "ustack-netns-holder" "/proc/$pid/cmdline" && echo "$pid"
}

exists() {
  if is_root; then [ -e "/run/netns/$NS" ]; else holder >/dev/null; fi
}

inside() {  # run a command in the namespace
  if is_root; then
    ip netns exec "$NS" "$@"
  else
    local pid
    pid=$(holder) || { echo "netns: $NS is not up: run netns/up" >&2; return 3; }
    nsenter --preserve-credentials -t "$pid" -U -n -- "$@"
  fi
}
