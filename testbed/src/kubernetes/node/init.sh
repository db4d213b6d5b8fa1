# The first process of a node's namespaces: makes them look like a separate machine, and keeps them. When it ends, every process,
# mount, link and rule of the node goes with it.
set -eu
packages=$1 folder=$2 gateway=$3 address=$4 cgroup=$5

# Pods' volumes have to appear in their containers.
mount --make-rshared /
mount -t overlay overlay -o "lowerdir=$packages/usr:/usr" /usr
for own in /run /var/lib /var/log; do mount -t tmpfs tmpfs "$own"; done
mkdir -p /run/lock /var/lib/cni /var/lib/kubelet /var/log/containers /var/log/pods

# What the kubelet would set for the whole machine is as it wants it, in its own eyes only.
own() { mkdir -p "$folder/sysctl"; echo "$2" >"$folder/sysctl/$1"; mount --bind "$folder/sysctl/$1" "/proc/sys/$(echo "$1" | tr . /)"; }
own vm.overcommit_memory 1
own vm.panic_on_oom 0
own kernel.panic 10
own kernel.panic_on_oops 1
own kernel.keys.root_maxkeys 1000000
own kernel.keys.root_maxbytes 25000000

# One folder in each hierarchy, or in the only one.
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ -e "$hierarchy/cgroup.procs" ] && [ ! -L "$hierarchy" ] && mkdir -p "$hierarchy/$cgroup"
done

ip link set lo up
echo ready >"$folder/waits-for-its-link"
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "$address/30" dev eth0
ip link set eth0 up
ip route add default via "$gateway"
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1
echo ready >"$folder/is-up"
trap 'exit 0' INT TERM
while :; do sleep 60 & wait $!; done
