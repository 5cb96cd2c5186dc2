#!/usr/bin/env bash
# Builds the container image without a registry and without a container engine: only the binaries of driver and controller and the
# files of glibc that they need. No shell, no package manager. The same inputs give the same bytes.
#
#   deploy/image.sh [BINARIES] [--tag NAME] [--out FILE]     the image, as `docker load`, `ctr images import`, `podman load`
#                                                            and `skopeo copy oci-archive:FILE` accept it
#   deploy/image.sh --rootfs DIR [BINARIES]                  its files only; deploy/Dockerfile uses this
#   deploy/image.sh --check [BINARIES]                       its files, and the programs started in a chroot of them
#
# BINARIES: --binary FILE, the driver, and --controller FILE, without which the image has no controller. Without --binary the release
# binaries of both are built: with `cargo auditable` where it is installed, so that the list of all crates is
# inside the binary (`rust-audit-info`, `trivy`, `grype` and `syft` read it as the image's SBOM), otherwise without, with a warning.
# Needs bash, GNU tar and coreutils, ldd.
set -euo pipefail
cd "$(dirname "$0")/.."

binary='' controller='' tag=dra-driver-mig:latest out=target/image.tar rootfs='' mode=image
while [ $# -gt 0 ]; do
  case $1 in
  --binary) binary=$2; shift 2 ;;
  --controller) controller=$2; shift 2 ;;
  --tag) tag=$2; shift 2 ;;
  --out) out=$2; shift 2 ;;
  --rootfs) mode=rootfs rootfs=$2; shift 2 ;;
  --check) mode=check; shift ;;
  *) sed -n 2,13p "$0"; exit 2 ;;
  esac
done

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# What the files and the image are dated by: given, or the commit's time, or the epoch.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
revision=${REVISION:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}

if [ -z "$binary" ]; then
  # Keep paths of this machine out of the binary: with them, the same commit would give other bytes elsewhere.
  export RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$PWD=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
  if cargo auditable --version >/dev/null 2>&1; then
    cargo auditable build --release --locked --bin dra-driver-mig --bin mig-controller
  else
    echo 'image.sh: no cargo-auditable (cargo install --locked cargo-auditable): the binary has no list of its crates, and the' \
      'image no SBOM' >&2
    cargo build --release --locked --bin dra-driver-mig --bin mig-controller
  fi
  binary=${CARGO_TARGET_DIR:-target}/release/dra-driver-mig
  controller=${CARGO_TARGET_DIR:-target}/release/mig-controller
fi

work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

# A file of the host at the same path below the image's root, links replaced by their targets.
put() { install -D -m "$3" "$1" "$2$1"; }

# The image's files.
fill() {
  local root=$1 library loader libc
  install -D -m 755 "$binary" "$root/usr/bin/dra-driver-mig"
  [ -z "$controller" ] || install -D -m 755 "$controller" "$root/usr/bin/mig-controller"
  # `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
  for library in $(ldd "$binary" ${controller:+"$controller"} | sed -n 's/^\t\(.* => \)\{0,1\}\(\/[^ ]*\) (.*/\2/p'); do put "$library" "$root" 755; done
  loader=$(ldd "$binary" | sed -n 's/^\t\(\/[^ ]*ld-linux[^ ]*\) (.*/\1/p')
  libc=$(ldd "$binary" | sed -n 's/^\tlibc\.so\.6 => \([^ ]*\) (.*/\1/p')
  [ -n "$loader" ] && [ -n "$libc" ] || { echo "image.sh: $binary is not linked to glibc, which opening NVML needs" >&2; exit 1; }
  # libnvidia-ml.so.1, which the driver opens on the node, is linked to these parts of older glibcs.
  for library in libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1; do put "$(dirname "$libc")/$library" "$root" 755; done
}

sum() { sha256sum "$1" | cut -d ' ' -f 1; }
size() { stat -c %s "$1"; }
# Moves a file to its place in the layout, and prints its digest.
blob() { local digest; digest=$(sum "$1"); mv "$1" "$work/image/blobs/sha256/$digest"; echo "$digest"; }
# A tar that depends on names and contents only.
pack() {
  tar --create --file "$2" --directory "$1" --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --format=ustar \
    --mode=u+rwX,go+rX-w .
}

case $mode in
rootfs) fill "$rootfs"; exit ;;
check)
  fill "$work/root"
  # As root, or in a user namespace where those are allowed.
  if [ "$(id -u)" = 0 ]; then inside() { chroot "$work/root" "$@"; }; else inside() { unshare --map-root-user chroot "$work/root" "$@"; }; fi
  inside /usr/bin/dra-driver-mig --version
  [ -z "$controller" ] || inside /usr/bin/mig-controller --version
  # It fails, because nothing that it looks for exists here; the check is that it says so.
  inside /usr/bin/dra-driver-mig check >"$work/list" || [ $? = 1 ]
  grep -q '^MISSING  NVIDIA driver' "$work/list"
  echo "runs; $(find "$work/root" -type f | wc -l) files, $(du -sb --apparent-size "$work/root" | cut -f 1) bytes"
  exit ;;
esac

fill "$work/root"
mkdir -p "$work/image/blobs/sha256" "$(dirname "$out")"
pack "$work/root" "$work/layer.tar"
bytes=$(size "$work/layer.tar")
layer=$(blob "$work/layer.tar")
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
case $(uname -m) in x86_64) architecture=amd64 ;; aarch64) architecture=arm64 ;; *) architecture=$(uname -m) ;; esac
# MALLOC_ARENA_MAX: one heap for all threads; without it the driver sets it and restarts itself.
cat >"$work/config.json" <<JSON
{"architecture":"$architecture","os":"linux","created":"$created","config":{"User":"0:0","Entrypoint":["/usr/bin/dra-driver-mig"],"Env":["PATH=/usr/bin","MALLOC_ARENA_MAX=1"],"Labels":{"org.opencontainers.image.title":"dra-driver-mig","org.opencontainers.image.description":"Kubernetes DRA driver that creates MIG instances on NVIDIA GPUs on demand","org.opencontainers.image.licenses":"Apache-2.0","org.opencontainers.image.version":"$version","org.opencontainers.image.revision":"$revision"}},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},"history":[{"created":"$created","created_by":"deploy/image.sh"}]}
JSON
config_bytes=$(size "$work/config.json")
config=$(blob "$work/config.json")
cat >"$work/manifest.json" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$config_bytes},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:$layer","size":$bytes}]}
JSON
manifest_bytes=$(size "$work/manifest.json")
manifest=$(blob "$work/manifest.json")
# The OCI layout, and beside it the list that `docker load` looks for.
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"
cat >"$work/image/index.json" <<JSON
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$manifest_bytes,"annotations":{"io.containerd.image.name":"$tag","org.opencontainers.image.ref.name":"${tag##*:}"}}]}
JSON
printf '[{"Config":"blobs/sha256/%s","RepoTags":["%s"],"Layers":["blobs/sha256/%s"]}]\n' "$config" "$tag" "$layer" >"$work/image/manifest.json"
pack "$work/image" "$out"
echo "$out: $tag, $(find "$work/root" -type f | wc -l) files, $((bytes / 1024)) KiB; manifest sha256:$manifest"
