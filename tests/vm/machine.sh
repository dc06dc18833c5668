#!/bin/bash
# Runs one command inside a small virtual machine (QEMU) that has a real v4l2loopback camera.
#
#   machine.sh build                  kernel, module and tools, once (root; Debian or Ubuntu; about half a minute)
#   machine.sh run SECONDS CMD ARG... boots, runs CMD in the current folder, exits with its status (124: no answer)
#
# The guest's kernel is Debian's. Its root is this machine's own file system, shared read-only over 9p under a RAM
# overlay, so that this checkout, its .venv, ffmpeg and chromium are there at the same paths. What is written vanishes,
# except below $VM_OUT. /dev/video0 is made with exclusive_caps=1 (what browsers want), /dev/video1 with 0.
# Without hardware virtualisation (no svm or vmx in /proc/cpuinfo) the guest is emulated, some 20 to 50 times slower.
set -euo pipefail
: "${VM_CACHE:=$HOME/.cache/understudy-vm}" "${VM_OUT:=$PWD/vm_out}" "${VM_MEM:=3072}" "${VM_CPUS:=2}"
MODULES="virtio_pci 9pnet_virtio 9p overlay videodev v4l2loopback"

build() {
  export DEBIAN_FRONTEND=noninteractive
  mkdir -p "$VM_CACHE/root"
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends \
    qemu-system-x86 busybox-static cpio kmod make linux-headers-amd64 >/dev/null
  local headers version packages
  headers=$(apt-cache depends linux-headers-amd64 | awk '/Depends:/{print $2; exit}')
  version=${headers#linux-headers-}
  packages=$(mktemp -d)
  (cd "$packages" && apt-get download -qq "linux-image-$version" v4l2loopback-dkms)
  for package in "$packages"/*.deb; do dpkg-deb -x "$package" "$VM_CACHE/root"; done   # unpacked, never installed
  rm -rf "$packages"
  local source modules=$VM_CACHE/root/lib/modules/$version
  source=$(echo "$VM_CACHE"/root/usr/src/v4l2loopback-*)
  make -s -C "/usr/src/linux-headers-$version" M="$source" modules
  mkdir -p "$modules/extra"
  cp "$source/v4l2loopback.ko" "$modules/extra/"
  depmod -b "$VM_CACHE/root" "$version"
  cp "$VM_CACHE/root/boot/vmlinuz-$version" "$VM_CACHE/vmlinuz"
  echo "$version" > "$VM_CACHE/version"
}

initramfs() {   # busybox, the modules in the order they are loaded, and the script that becomes process 1
  local into=$1 version module path name
  version=$(cat "$VM_CACHE/version")
  mkdir -p "$into"/{bin,modules,proc,sys,dev,lower,upper,root,out}
  cp /bin/busybox "$into/bin/busybox"
  ln -s busybox "$into/bin/sh"
  : > "$into/modules/order"
  for module in $MODULES; do
    modprobe -d "$VM_CACHE/root" -S "$version" --show-depends "$module" | awk '$1 == "insmod" {print $2}' |
      while read -r path; do
        name=$(basename "$path")
        [ -e "$into/modules/$name" ] || { cp "$path" "$into/modules/$name"; echo "$name" >> "$into/modules/order"; }
      done
  done
  cat > "$into/init" <<'INIT'
#!/bin/sh
export PATH=/bin
b=busybox
$b mount -t proc p /proc; $b mount -t sysfs s /sys; $b mount -t devtmpfs d /dev
while read -r module; do
  case $module in
    v4l2loopback.ko) $b insmod /modules/$module devices=2 video_nr=0,1 card_label=Understudy,Plain exclusive_caps=1,0 ;;
    *) $b insmod /modules/$module ;;
  esac || echo "machine: $module was not loaded"
done < /modules/order
o=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o ro,cache=loose,$o host /lower
$b mount -t tmpfs t /upper; $b mkdir /upper/files /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work o /root
for d in proc sys dev; do $b mount -o move /$d /root/$d; done
$b mkdir -p /root/dev/pts /root/dev/shm
$b mount -t devpts p /root/dev/pts; $b mount -t tmpfs s /root/dev/shm; $b mount -t tmpfs r /root/run
$b mount -t 9p -o rw,$o out /out
. /out/.where
$b mkdir -p "/root$VM_OUT"; $b mount -o move /out "/root$VM_OUT"
$b ip link set lo up
$b chroot /root /bin/bash "$VM_OUT/.command" </root/dev/null
echo $? > "/root$VM_OUT/.status"
$b sync; $b poweroff -f
INIT
  chmod +x "$into/init"
  (cd "$into" && find . | cpio -o -H newc --quiet) > "$into.img"
}

run() {
  local limit_s=$1 scratch accelerator=tcg,thread=multi cpu=max
  shift
  [ -s "$VM_CACHE/vmlinuz" ] || { echo "there is no machine yet: $0 build" >&2; exit 2; }
  # /dev/kvm alone proves nothing: where the processor has neither svm nor vmx, it cannot run this kernel.
  if grep -qwE 'svm|vmx' /proc/cpuinfo && [ -w /dev/kvm ]; then accelerator=kvm cpu=host; fi
  mkdir -p "$VM_OUT"
  VM_OUT=$(cd "$VM_OUT" && pwd)
  scratch=$(mktemp -d)
  trap 'rm -rf "'"$scratch"'"' EXIT
  initramfs "$scratch/i"
  printf 'VM_OUT=%q\n' "$VM_OUT" > "$VM_OUT/.where"
  { printf 'export PATH=%q HOME=%q VM_OUT=%q LANG=C.UTF-8\ncd %q\n' "$PATH" "$HOME" "$VM_OUT" "$PWD"
    printf 'exec >/dev/ttyS1 2>&1; stty -F /dev/ttyS1 -onlcr 2>/dev/null\n'
    printf '%q ' "$@"; echo; } > "$VM_OUT/.command"
  rm -f "$VM_OUT/.status"
  timeout "$limit_s" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    -machine q35 -accel "$accelerator" -cpu "$cpu" -smp "$VM_CPUS" -m "$VM_MEM" \
    -kernel "$VM_CACHE/vmlinuz" -initrd "$scratch/i.img" \
    -append "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off tsc=unstable clocksource=acpi_pm nowatchdog no_timer_check random.trust_cpu=on" \
    -serial "file:$VM_OUT/console.log" -serial stdio -device virtio-rng-pci \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
    -virtfs local,path="$VM_OUT",mount_tag=out,security_model=none,multidevs=remap </dev/null || true
  [ -s "$VM_OUT/.status" ] && exit "$(cat "$VM_OUT/.status")"
  echo "no answer within $limit_s s, or the machine died; see $VM_OUT/console.log" >&2
  exit 124
}

case ${1:-} in
  build) build ;;
  run) shift; run "$@" ;;
  *) sed -n '2,12p' "$0"; exit 2 ;;
esac
